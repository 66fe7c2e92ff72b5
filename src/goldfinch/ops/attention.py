"""Causal attention whose mask is aligned to the end of the keys, all at once or over blocks of keys."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of the last T of S positions on all positions up to their own, scale 1/sqrt(N).

    `is_causal=True` of PyTorch aligns the mask to the START of the keys when T and S differ, which would hide the end
    of the text from the newest tokens; here query t sees the keys up to S - T + t.

    Args:
        q: (B, H, T, N).
        k, v: (B, H, S, N), S >= T.

    Returns:
        (B, H, T, N).
    """
    length, total = q.shape[-2], k.shape[-2]
    if length == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if length == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def blockwise_causal_attention(q: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], total: int) -> Tensor:
    """`causal_attention` over keys and values that come in blocks, with a running softmax.

    Nothing larger than one block is held: the scores are (T x block), never (T x S).

    Args:
        q: (B, H, T, N), the last T of `total` positions.
        blocks: keys and values, two of (B, H, S_i, N) each, in the order of the text; the S_i add up to `total`.
        total: S, the number of keys.

    Returns:
        (B, H, T, N) in q's dtype; computed in fp32, in fp64 where q is fp64.
    """
    first_query = total - q.shape[-2]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scaled = q.to(wide) * q.shape[-1] ** -0.5
    highest = scaled.new_full((*q.shape[:-1], 1), -torch.inf)
    weight, weighted = torch.zeros_like(highest), torch.zeros_like(scaled)
    start = 0
    for k, v in blocks:
        if k.shape[-2] == total:
            return causal_attention(q, k, v)
        scores = scaled @ k.to(wide).transpose(-1, -2)
        if start + k.shape[-2] > first_query + 1:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(first_query - start)
            scores = scores.masked_fill(~visible, -torch.inf)
        # The first block holds key 0, which every query sees: `highest` is finite from then on.
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        fading, shares = (highest - higher).exp(), (scores - higher).exp()
        weight = weight * fading + shares.sum(-1, keepdim=True)
        weighted = weighted * fading + shares @ v.to(wide)
        highest = higher
        start += k.shape[-2]
    return (weighted / weight).to(q.dtype)
