"""Causal attention whose mask is aligned to the end of the keys."""

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
