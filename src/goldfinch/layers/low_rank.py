"""The low-rank function inside every lora of the paper."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """tanh(z A) B, for one or several outputs (in P1-3 and P16).

    The paper's lora(z) = lambda + tanh(z A) B and loradapt(z) = z + tanh(z C) E are this plus their own first term,
    which stands where it is used.
    """

    def __init__(self, width: int, rank: int, outputs: int = 1) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(width, outputs * rank))
        """(D, outputs * rank): the first factors side by side."""
        self.b = nn.Parameter(torch.empty(outputs, rank, width))
        """(outputs, rank, D)."""

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """(..., D) -> one (..., D) per output."""
        outputs = self.b.shape[0]
        hidden = torch.tanh(z @ self.a)
        return tuple(part @ b for part, b in zip(hidden.chunk(outputs, dim=-1), self.b, strict=True))
