"""Normalisations that are not PyTorch's own."""

from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with weight and bias, eps 1e-5 (SPEC 1)."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


def rms_normalize(x: Tensor) -> Tensor:
    """x / (rms(x) + 1e-8) over the last dimension, without a weight, in fp32 or better (P15).

    Not `F.rms_norm`, whose eps stands inside the root: near zero the two differ.
    """
    wide = x.float() if x.itemsize < 4 else x
    return (wide / (wide.square().mean(-1, keepdim=True).sqrt() + 1e-8)).to(x.dtype)
