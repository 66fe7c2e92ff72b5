"""Causal attention whose mask is aligned to the end of the keys, all at once or over blocks of keys."""

import ctypes
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.cpu.autotune import Kernel, Work, is_faster
from goldfinch.cpu.build import compiled, float_lanes
from goldfinch.cpu.pointers import pointer
from goldfinch.devices import dtype_name

SOURCE = Path(__file__).with_suffix(".cpp")
MAX_QUERIES = 16
"""For more queries, PyTorch's matrix products are faster."""


class KeyValueBlock(NamedTuple):
    """Keys and values of S_i consecutive tokens."""

    keys: Tensor
    """(B, H, S_i, N)."""
    values: Tensor
    """(B, H, S_i, N), or (B, H, U_i, N) where several keys have the same value."""
    value_index: Tensor | None = None
    """(S_i,) int64: the value of each key, as an index into `values`; None if each key has its own."""

    def of_each_key(self) -> Tensor:
        """Values, one for each key: (B, H, S_i, N)."""
        return self.values if self.value_index is None else self.values[:, :, self.value_index]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """Softmax attention of the last T of S positions on all positions up to their own, scale 1/sqrt(N).

    `is_causal=True` of PyTorch aligns the mask to the START of the keys when T and S differ, which would hide the end
    of the text from the newest tokens; here query t sees the keys up to S - T + t.

    Args:
        q: (B, H, T, N).
        k, v: (B, H, S, N), S >= T.
        document_starts: (B, S) bool, the tokens that begin a document: each query sees its own document only. None
            for one document. It costs a mask of B T S numbers, kept for the gradients, and the half of the work that
            a purely causal mask saves; PyTorch's flash attention for GPUs takes no mask, so that its slower
            memory-efficient form runs there.

    Returns:
        (B, H, T, N).
    """
    length, total = q.shape[-2], k.shape[-2]
    if length == 1 and document_starts is None:
        return F.scaled_dot_product_attention(q, k, v)
    if length == total and document_starts is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)
    if document_starts is not None:
        document = document_starts.cumsum(-1)
        mask = (mask & (document[:, total - length :, None] == document[:, None, :]))[:, None]  # (B, 1, T, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def blockwise_causal_attention(
    q: Tensor, blocks: Iterable[KeyValueBlock], total: int, positions: Tensor | None = None
) -> Tensor:
    """`causal_attention` over keys and values that come in blocks, with a running softmax.

    Nothing larger than one block is held: the scores are (T x block), never (T x S). Where keys share values, what
    attends to them is added up before the product with the values (SPEC 6, fact 1). Few queries of one sequence on a
    CPU are computed in C++ (attention.cpp), which reads each key and value once.

    Args:
        q: (B, H, T, N).
        blocks: in the order of the text, with B or, for the same keys in all sequences, 1; the S_i add up to `total`.
        total: S, the number of keys.
        positions: (B, T) int64, where in the text each query stands; None: they are the last T of `total`.

    Returns:
        (B, H, T, N) in q's dtype; computed in fp32, in fp64 where q is fp64.
    """
    if positions is None and _cpu_attend(q) is not None and is_faster(KERNELS[q.dtype]):
        return _few_queries(q, blocks, total)
    return _in_pytorch(q, blocks, total, positions)


def _in_pytorch(q: Tensor, blocks: Iterable[KeyValueBlock], total: int, positions: Tensor | None = None) -> Tensor:
    first_query = total - q.shape[-2] if positions is None else int(positions.min())
    ends = torch.arange(first_query, total, device=q.device) if positions is None else positions[:, None]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scaled = q.to(wide) * q.shape[-1] ** -0.5
    highest = scaled.new_full((*q.shape[:-1], 1), -torch.inf)
    weight, weighted = torch.zeros_like(highest), torch.zeros_like(scaled)
    start = 0
    for k, v, value_index in blocks:
        count = k.shape[-2]
        if count == total and positions is None and value_index is None:
            return causal_attention(q, k, v)
        scores = _products(scaled, k.to(wide).transpose(-1, -2))
        if start + count > first_query + 1:
            keys = torch.arange(start, start + count, device=q.device)
            scores = scores.masked_fill(keys > ends[..., None], -torch.inf)
        # The first block holds key 0, which every query sees: `highest` is finite from then on.
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        fading, shares = (highest - higher).exp(), (scores - higher).exp()
        weight = weight * fading + shares.sum(-1, keepdim=True)
        if value_index is not None:
            shares = shares.new_zeros(*shares.shape[:-1], v.shape[-2]).index_add_(-1, value_index, shares)
        weighted = weighted * fading + _products(shares, v.to(wide))
        highest = higher
        start += count
    return (weighted / weight).to(q.dtype)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """(B, H, T, M) @ (B or 1, H, M, K): what all sequences share is multiplied once with the rows of all of them."""
    if len(x) == len(y):
        return x @ y
    rows = x.transpose(0, 1).flatten(1, 2) @ y[0]  # broadcasting would copy y for each sequence
    return rows.unflatten(1, (len(x), -1)).transpose(0, 1)


def _cpu_attend(q: Tensor) -> Callable[..., None] | None:
    """The C++ kernel for these queries; None if PyTorch must compute them."""
    batch, _, length, size = q.shape
    fits = batch == 1 and length <= MAX_QUERIES and q.dtype in (torch.float32, torch.bfloat16)
    # torch.compile does not see what C++ writes.
    if q.device.type != "cpu" or not fits or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    code = compiled(SOURCE, "attention")
    lanes = float_lanes(code)
    if lanes is None or size % lanes:
        return None
    return getattr(code, f"attend_{dtype_name(q.dtype)}")


def _readable(block: KeyValueBlock, q: Tensor) -> KeyValueBlock:
    """A block of one sequence as C++ reads it: in q's dtype, (H, S_i, N) and (H, U_i, N), consecutive along N.

    Queries may have another dtype than what is kept: under autocast they are bfloat16, and keys and values float32.

    Raises:
        ValueError: shapes or devices do not fit the queries.
    """
    _, heads, _, size = q.shape
    for part in (block.keys, block.values):
        if part.shape[:2] != (1, heads) or part.shape[3:] != (size,) or part.device != q.device:
            raise ValueError(
                f"keys and values must be (1, {heads}, S, {size}) on {q.device}, "
                f"not {tuple(part.shape)} on {part.device}"
            )
    index = block.value_index
    num_keys, num_values = block.keys.shape[2], block.values.shape[2]
    if index is None and num_keys != num_values:
        raise ValueError(f"{num_keys} keys and {num_values} values need a value_index")
    if index is not None:
        if index.shape != (num_keys,) or index.device != q.device:
            raise ValueError(f"value_index must be ({num_keys},) on {q.device}, not {tuple(index.shape)}")
        index = index.to(torch.int64).contiguous()
    k, v = (part[0].to(q.dtype) for part in (block.keys, block.values))
    k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (k, v))
    return KeyValueBlock(k, v, index)


def _few_queries(q: Tensor, blocks: Iterable[KeyValueBlock], total: int) -> Tensor:
    attend = _cpu_attend(q)
    assert attend is not None
    _, heads, length, size = q.shape
    scaled = (q[0].transpose(0, 1).float() * size**-0.5).contiguous()
    highest, weight = torch.full((length, heads), -torch.inf), torch.zeros(length, heads)
    weighted = torch.zeros(length, heads, size)
    per_head = (length, heads)
    queries = pointer(scaled, (*per_head, size), torch.float32)
    shapes = (per_head, per_head, (*per_head, size))
    sums = [pointer(x, shape, torch.float32) for x, shape in zip((highest, weight, weighted), shapes, strict=True)]
    threads = ctypes.c_int(torch.get_num_threads())
    start = 0
    for block in blocks:
        k, v, value_index = _readable(block, q)
        count = k.shape[-2]
        sizes = map(ctypes.c_int64, (length, heads, size))
        strides = map(ctypes.c_int64, (*k.stride()[:2], *v.stride()[:2]))
        positions = map(ctypes.c_int64, (count, start - (total - length)))
        keys = pointer(k, (heads, count, size), q.dtype, strided=True)
        values = pointer(v, (heads, v.shape[1], size), q.dtype, strided=True)
        attend(
            *sizes, queries, keys, values, *strides, pointer(value_index, (count,), torch.int64), *positions, threads,
            *sums,
        )  # fmt: skip
        start += count
    return (weighted / weight[..., None]).transpose(0, 1)[None].to(q.dtype)


def _kernel(dtype: torch.dtype) -> Kernel:
    def prepare() -> tuple[Work, Work]:
        # As in decoding: one query, kept keys and values of 4 heads.
        q, *blocks = torch.randn(1, 4, 1, 64), *(torch.randn(1, 1024, 4, 64).transpose(1, 2) for _ in range(4))
        q, *blocks = (part.to(dtype) for part in (q, *blocks))
        pairs = [KeyValueBlock(k, v) for k, v in zip(blocks[::2], blocks[1::2], strict=True)]

        def run(attend: Callable[[Tensor, Iterable[KeyValueBlock], int], Tensor]) -> None:
            with torch.no_grad():
                attend(q, pairs, 2048)

        return partial(run, _few_queries), partial(run, _in_pytorch)

    return Kernel(f"attention, {dtype_name(dtype)}", SOURCE, "attention", prepare)


KERNELS = {dtype: _kernel(dtype) for dtype in (torch.float32, torch.bfloat16)}
"""Attention of a new token to 2,048."""
