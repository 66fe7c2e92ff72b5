"""Initial values of parameters, by their role and their layer (SPEC 7; Finch paper, appendix I)."""

import torch
from torch import Tensor, nn

EMBEDDING_BOUND = 1e-4
LOW_RANK_BOUND = 0.01


def mixing_vector(use: str, layer: int, num_layers: int, width: int) -> Tensor:
    """Initial token-shift weights for one use, (D,), float32.

    Args:
        use: "r", "g", "q" start closer to the token itself, "v", "v2" decrease with depth, all others are plain.
        layer: index in the whole stack.
        num_layers: L.
        width: D.
    """
    depth, height = _depth(layer, num_layers), 1 - layer / num_layers
    channel = torch.arange(width, dtype=torch.float32) / width
    match use:
        case "r" | "g" | "q":
            return 1 - channel ** (height / 2)
        case "v" | "v2":
            return 1 - channel**height - 0.3 * depth
        case _:
            return 1 - channel**height


def decay_base(layer: int, num_layers: int, width: int) -> Tensor:
    """Initial lambda_d, (D,), float32: from slow (-6) to fast (-1) over the channels, steeper in higher layers."""
    channel = torch.arange(width, dtype=torch.float32) / (width - 1)
    return -6 + 5 * channel ** (0.7 + 1.3 * _depth(layer, num_layers))


def bonus(layer: int, num_layers: int, num_heads: int, head_size: int) -> Tensor:
    """Initial u, (H, N), float32."""
    width = num_heads * head_size
    channel = torch.arange(width, dtype=torch.float32)
    zigzag = 0.1 * ((channel + 1) % 3 - 1)
    return (_depth(layer, num_layers) * (1 - channel / (width - 1)) + zigzag).view(num_heads, head_size)


def output_norm_weight(layer: int, num_layers: int) -> float:
    """Initial weight of the norm before W_O."""
    return ((1 + layer) / num_layers) ** 0.7


def orthogonal_(linear: nn.Linear, gain: float) -> None:
    """Fill with orthogonal rows or columns; drawn in fp32 on the CPU, so that every device and dtype starts equal."""
    weight = torch.empty(linear.weight.shape)
    nn.init.orthogonal_(weight, gain)
    linear.weight.copy_(weight)


def _depth(layer: int, num_layers: int) -> float:
    """0 at the bottom layer, 1 at the top; 0 in a model of one layer."""
    return layer / max(num_layers - 1, 1)
