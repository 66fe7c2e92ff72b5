"""WKV6 one step at a time: the definition, which every faster form is tested against."""

import torch
from torch import Tensor


def wkv6_recurrent(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token. Arguments and results as in `goldfinch.ops.wkv6.wkv6`."""
    w = log_w.exp()
    y = []
    for t in range(r.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]  # (B, H, N, N), key x value
        seen = state if u is None else state + u[:, :, None] * kv
        y.append((r[:, t, :, None, :] @ seen).squeeze(-2))
        state = w[:, t, :, :, None] * state + kv
    return torch.stack(y, dim=1), state
