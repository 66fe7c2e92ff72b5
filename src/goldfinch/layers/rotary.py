"""Rotary position embedding with the two interpolation knobs of the reference (SPEC 3)."""

import torch
from torch import Tensor

from goldfinch.config import RopeConfig


def rotate(x: Tensor, start: int | Tensor, rope: RopeConfig | None) -> Tensor:
    """Turn the channel pairs (2i, 2i+1) of each position by position * (base * rebase)^(-2i/N) / rescale.

    Args:
        x: (B, H, T, N) queries or keys.
        start: position of x[:, :, 0] in the text, or (B, T), the position of each.
        rope: None leaves x as it is.
    """
    if rope is None:
        return x
    length, size = x.shape[-2:]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    velocity = velocities(size, rope, dtype, x.device)
    if isinstance(start, int):
        positions = torch.arange(start, start + length, device=x.device, dtype=dtype)
    else:
        positions = start[:, None].to(dtype)
    turn = positions[..., None] * velocity
    cos, sin = turn.cos(), turn.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def velocities(size: int, rope: RopeConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians per position of each pair of a head's N = `size` channels, (N / 2)."""
    pairs = torch.arange(0, size, 2, device=device, dtype=dtype)
    return (rope.base * rope.rebase) ** (-pairs / size) / rope.rescale
