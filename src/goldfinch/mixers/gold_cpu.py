"""`Gold.mix` and `Gold.keys` in C++ (gold.cpp): rebuilding keys and values of the past without gradients, on CPUs.

PyTorch passes over all tokens a dozen times and waits for memory each time; here a few tokens at a time go through all.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.cpu.build import compiled, pointer
from goldfinch.layers.low_rank import LowRank

SOURCE = Path(__file__).with_name("gold.cpp")
LANES = 16  # all widths must be a multiple of it


def possible(rows: Tensor, *low_ranks: LowRank) -> bool:
    """Whether C++ can compute these rows, (S, D): on a CPU, in the layer's dtype, without gradients, of these sizes."""
    return (
        rows.dim() == 2
        and rows.device.type == "cpu"
        and not torch.is_grad_enabled()
        and rows.dtype in (torch.float32, torch.bfloat16)
        and all(rows.dtype == low_rank.a.dtype for low_rank in low_ranks)
        and not any(size % LANES for size in (rows.shape[1], *(low_rank.b.shape[1] for low_rank in low_ranks)))
        and compiled(SOURCE, "GOLD") is not None
    )


def mix(
    embeddings: Tensor,
    before: Tensor,
    mu: tuple[Tensor, Tensor, Tensor],
    shift: LowRank,
    adapter: LowRank,
    norm: nn.LayerNorm,
) -> tuple[Tensor, Tensor]:
    """As `Gold.mix`; mu: of what chooses the weights, of keys and of values."""
    embeddings, before = (part.to(embeddings.dtype).contiguous() for part in (embeddings, before))
    weights, values = torch.empty_like(embeddings), torch.empty_like(embeddings)
    _function("mix", embeddings)(
        *map(pointer, (embeddings, before)), *_sizes(*embeddings.shape),
        *map(pointer, (*mu, shift.a, shift.b)), *_sizes(shift.b.shape[1]),
        *map(pointer, (adapter.a, adapter.b)), *_sizes(adapter.b.shape[1]),
        *map(pointer, (norm.weight, norm.bias)), ctypes.c_double(norm.eps), _threads(),
        *map(pointer, (weights, values)),
    )  # fmt: skip
    return weights, values


def keys(
    kd: Tensor, before: Tensor, weights: Tensor, value_index: Tensor | None, adapter: LowRank, norm: nn.LayerNorm
) -> Tensor:
    """As `Gold.keys`."""
    kd, before, weights = (part.to(kd.dtype).contiguous() for part in (kd, before, weights))
    result = torch.empty_like(kd)
    _function("keys", kd)(
        *map(pointer, (kd, before, weights, value_index)), *_sizes(*kd.shape),
        *map(pointer, (adapter.a, adapter.b)), *_sizes(adapter.b.shape[1]),
        *map(pointer, (norm.weight, norm.bias)), ctypes.c_double(norm.eps), _threads(), pointer(result),
    )  # fmt: skip
    return result


def _function(name: str, rows: Tensor) -> Callable[..., Any]:
    code = compiled(SOURCE, "GOLD")
    assert code is not None
    return getattr(code, f"{name}_{str(rows.dtype).removeprefix('torch.')}")


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())
