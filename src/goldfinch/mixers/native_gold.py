"""`Gold.mix` and `Gold.keys` in C++ (gold.cpp): rebuilding keys and values of the past without gradients, on CPUs.

PyTorch passes over all tokens a dozen times and waits for memory each time; here a few tokens at a time go through all.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from goldfinch.cpp import compiled, pointer

if TYPE_CHECKING:
    from goldfinch.mixers.gold import Gold

SOURCE = Path(__file__).with_name("gold.cpp")
LANES = 16  # what all widths must be a multiple of


def possible(layer: "Gold", rows: Tensor) -> bool:
    """Whether these rows, (S, D), are for C++: on a CPU, in the layer's type, without gradients, of fitting sizes."""
    dtype = layer.mu_k.dtype
    ranks = (layer.shift_low_rank.b.shape[1], layer.key_adapter.b.shape[1], layer.value_adapter.b.shape[1])
    return (
        rows.dim() == 2
        and rows.device.type == "cpu"
        and not torch.is_grad_enabled()
        and dtype in (torch.float32, torch.bfloat16)
        and rows.dtype == dtype
        and not any(size % LANES for size in (rows.shape[1], *ranks))
        and compiled(SOURCE, "GOLD") is not None
    )


def mix(layer: "Gold", embeddings: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """As `Gold.mix`."""
    embeddings, before = embeddings.contiguous(), before.contiguous()
    weights, values = torch.empty_like(embeddings), torch.empty_like(embeddings)
    shift, adapter, norm = layer.shift_low_rank, layer.value_adapter, layer.value_norm
    _function("mix", embeddings)(
        *map(pointer, (embeddings, before)), *_sizes(*embeddings.shape),
        *map(pointer, (layer.memory_mu, layer.mu_k, layer.mu_v, shift.a, shift.b)), *_sizes(shift.b.shape[1]),
        *map(pointer, (adapter.a, adapter.b)), *_sizes(adapter.b.shape[1]),
        *map(pointer, (norm.weight, norm.bias)), ctypes.c_double(norm.eps), _threads(),
        *map(pointer, (weights, values)),
    )  # fmt: skip
    return weights, values


def keys(layer: "Gold", kd: Tensor, before: Tensor, weights: Tensor, rows: Tensor | None) -> Tensor:
    """As `Gold.keys`."""
    kd, before, weights = kd.contiguous(), before.contiguous(), weights.contiguous()
    result = torch.empty_like(kd)
    adapter, norm = layer.key_adapter, layer.key_norm
    _function("keys", kd)(
        *map(pointer, (kd, before, weights, rows)), *_sizes(*kd.shape),
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
