"""WKV6 in C++ (cpu.cpp): a torch operator with gradients."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.cpu.build import compiled
from goldfinch.cpu.pointers import pointer

SOURCE = Path(__file__).with_name("cpu.cpp")
MAX_HEAD_SIZE = 256
# Entries of S times tokens; below, starting another thread costs more than it saves.
WORTH_A_THREAD = 1 << 20

SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}

Results = tuple[Tensor, Tensor]
Shape = tuple[int, ...]


def library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler."""
    return compiled(SOURCE, "WKV6")


def vector_bytes() -> int:
    """Of a vector in the compiled library. Separate from `library` for torch.compile, which takes it as a constant."""
    code = library()
    return code.vector_bytes() if code is not None else 64


def wkv6_cpu(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence in C++. Arguments and results as in `goldfinch.ops.wkv6.wkv6`; on the CPU only."""
    size = r.shape[-1]
    padding = -size % (vector_bytes() // r.itemsize)
    w = log_w.exp()
    if padding:
        r, k, v, w = (F.pad(x, (0, padding)) for x in (r, k, v, w))
        u = None if u is None else F.pad(u, (0, padding))
        state = F.pad(state, (0, padding, 0, padding))
    # The operator costs more than the recurrence of one token: only for tracing and differentiation.
    traced = type(r) is not Tensor or torch.compiler.is_compiling()
    inputs = (r, k, v, w, u, state)
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y, after = (_forward if traced or differentiated else _run)(*inputs)
    return y[..., :size], after[..., :size, :size]


@torch.library.custom_op("goldfinch::wkv6", mutates_args=(), device_types="cpu")
def _forward(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, state: Tensor) -> Results:
    return _run(r, k, v, w, u, state)


def _run(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, state: Tensor) -> Results:
    r, k, v, w, state = (x.contiguous() for x in (r, k, v, w, state))
    u = None if u is None else u.contiguous()
    y, after = torch.empty_like(r), torch.empty_like(state)
    tokens, heads, states = _shapes(r)
    inputs = (*((x, tokens) for x in (r, k, v, w)), (u, heads), (state, states))
    _call("forward", r, (*inputs, (y, tokens), (after, states)))
    return y, after


@_forward.register_fake
def _(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, state: Tensor) -> Results:
    return torch.empty_like(r), torch.empty_like(state)


@torch.library.custom_op("goldfinch::wkv6_backward", mutates_args=(), device_types="cpu")
def _backward(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, state: Tensor, dy: Tensor, dafter: Tensor
) -> list[Tensor]:
    r, k, v, w, state, dy, dafter = (x.contiguous() for x in (r, k, v, w, state, dy, dafter))
    u = None if u is None else u.contiguous()
    dr, dk, dv, dw = (torch.empty_like(r) for _ in range(4))
    dstate = torch.empty_like(state)
    du = r.new_empty(r.shape[0], *r.shape[2:])
    tokens, heads, states = _shapes(r)
    inputs = (*((x, tokens) for x in (r, k, v, w)), (u, heads), (state, states), (dy, tokens), (dafter, states))
    outputs = (*((x, tokens) for x in (dr, dk, dv, dw)), (du, du.shape), (dstate, states))
    _call("backward", r, (*inputs, *outputs))
    return [dr, dk, dv, dw, du.sum(0) if u is not None else r.new_empty(0), dstate]


@_backward.register_fake
def _(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, state: Tensor, dy: Tensor, dafter: Tensor
) -> list[Tensor]:
    du = r.new_empty(0) if u is None else torch.empty_like(u)
    return [*(torch.empty_like(x) for x in (r, k, v, w)), du, torch.empty_like(state)]


def _keep_inputs(ctx: Any, inputs: tuple, output: Results) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor | None, ...]:
    dr, dk, dv, dw, du, dstate = _backward(*ctx.saved_tensors, dy, dafter)
    return dr, dk, dv, dw, du if ctx.needs_input_grad[4] else None, dstate


_forward.register_autograd(_gradients, setup_context=_keep_inputs)


def _shapes(r: Tensor) -> tuple[Shape, Shape, Shape]:
    """Shapes of r, k, v, w and y; of u; of the state."""
    batch, _, heads, size = r.shape
    return r.shape, (heads, size), (batch, heads, size, size)


def _call(name: str, r: Tensor, tensors: Sequence[tuple[Tensor | None, Shape]]) -> None:
    code = library()
    if code is None or r.dtype not in SUFFIXES:
        raise RuntimeError(f"WKV6 in C++ is for float32 and float64, with a compiler; r is {r.dtype}")
    sizes = [ctypes.c_int64(extent) for extent in r.shape]
    threads = torch.get_num_threads() if r.numel() * r.shape[-1] >= WORTH_A_THREAD else 1
    pointers = [pointer(tensor, shape, r.dtype) for tensor, shape in tensors]
    getattr(code, f"wkv6_{name}_{SUFFIXES[r.dtype]}")(*sizes, ctypes.c_int(threads), *pointers)
