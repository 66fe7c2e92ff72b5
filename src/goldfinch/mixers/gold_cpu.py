"""`Gold.mix` and `Gold.keys` in C++ (gold.cpp): rebuilding keys and values of the past without gradients, on CPUs.

PyTorch passes over all tokens a dozen times and waits for memory each time; here a few tokens at a time go through all.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.cpu.build import compiled, float_lanes
from goldfinch.cpu.pointers import pointer
from goldfinch.devices import dtype_name
from goldfinch.layers.low_rank import LowRank

SOURCE = Path(__file__).with_name("gold.cpp")


def possible(rows: Tensor, *low_ranks: LowRank) -> bool:
    """Whether C++ may be tried for these rows, (S, D): on a CPU, without gradients or torch.compile, of these sizes.

    `mix` and `keys` then refuse what they cannot read, such as a weight of another dtype.
    """
    if rows.dim() != 2 or not rows.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    lanes = float_lanes(compiled(SOURCE, "GOLD"))
    return lanes is not None and not any(
        size % lanes for size in (rows.shape[1], *(low_rank.b.shape[1] for low_rank in low_ranks))
    )


def mix(
    embeddings: Tensor,
    before: Tensor,
    mu: tuple[Tensor, Tensor, Tensor],
    shift: LowRank,
    adapter: LowRank,
    norm: nn.LayerNorm,
) -> tuple[Tensor, Tensor]:
    """As `Gold.mix`; mu: of what chooses the weights, of keys and of values.

    Raises:
        UnfitTensorError: a tensor has another dtype, shape, layout or device than the rows ask for.
    """
    embeddings, before = (part.to(embeddings.dtype).contiguous() for part in (embeddings, before))
    weights, values = torch.empty_like(embeddings), torch.empty_like(embeddings)
    rows, dtype = embeddings.shape, embeddings.dtype
    width = rows[1]
    _function("mix", embeddings)(
        *(pointer(part, rows, dtype) for part in (embeddings, before)), *_sizes(*rows),
        *(pointer(part, (width,), dtype) for part in mu), *_low_rank(shift, width, 2, dtype),
        *_low_rank(adapter, width, 1, dtype), *_norm(norm, width, dtype), _threads(),
        *(pointer(part, rows, dtype) for part in (weights, values)),
    )  # fmt: skip
    return weights, values


def keys(
    kd: Tensor, before: Tensor, weights: Tensor, value_index: Tensor | None, adapter: LowRank, norm: nn.LayerNorm
) -> Tensor:
    """As `Gold.keys`.

    Raises:
        UnfitTensorError: as `mix`.
    """
    kd, before, weights = (part.to(kd.dtype).contiguous() for part in (kd, before, weights))
    result = torch.empty_like(kd)
    rows, width, dtype = kd.shape, kd.shape[1], kd.dtype
    weight_rows = rows if value_index is None else (len(weights), width)
    _function("keys", kd)(
        pointer(kd, rows, dtype), pointer(before, rows, dtype), pointer(weights, weight_rows, dtype),
        pointer(value_index, rows[:1], torch.int64), *_sizes(*rows), *_low_rank(adapter, width, 1, dtype),
        *_norm(norm, width, dtype), _threads(), pointer(result, rows, dtype),
    )  # fmt: skip
    return result


def _low_rank(low_rank: LowRank, width: int, outputs: int, dtype: torch.dtype) -> list[Any]:
    rank = low_rank.b.shape[1]
    a = pointer(low_rank.a, (width, outputs * rank), dtype)
    return [a, pointer(low_rank.b, (outputs, rank, width), dtype), *_sizes(rank)]


def _norm(norm: nn.LayerNorm, width: int, dtype: torch.dtype) -> list[Any]:
    return [*(pointer(part, (width,), dtype) for part in (norm.weight, norm.bias)), ctypes.c_double(norm.eps)]


def _function(name: str, rows: Tensor) -> Callable[..., Any]:
    code = compiled(SOURCE, "GOLD")
    assert code is not None
    return getattr(code, f"{name}_{dtype_name(rows.dtype)}")


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())
