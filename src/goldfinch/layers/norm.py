"""Normalisations that are not PyTorch's own."""

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with weight and bias, eps 1e-5 (SPEC 1)."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


def rms_normalize(x: Tensor) -> Tensor:
    """x / (rms(x) + 1e-8) over the last dimension, without a weight, in fp32 or better (P15).

    Not `F.rms_norm`, whose eps is inside the root: near zero the two differ.
    """
    wide = x.float() if x.itemsize < 4 else x
    # The norm's gradient is 0 where x is 0; that of a square root would be NaN.
    rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return (wide / (rms + 1e-8)).to(x.dtype)
