"""The low-rank function inside every lora of the paper."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """start + tanh(z A) B, for one or several outputs.

    The paper's lora(z) = lambda + tanh(z A) B (P1-3) starts at lambda, its loradapt(z) = z + tanh(z C) E (P16) at z.
    """

    def __init__(self, width: int, rank: int, outputs: int = 1) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(width, outputs * rank))
        """(D, outputs * rank): the first factors side by side."""
        self.b = nn.Parameter(torch.empty(outputs, rank, width))
        """(outputs, rank, D)."""

    def forward(self, z: Tensor, *starts: Tensor) -> tuple[Tensor, ...]:
        """(..., D) -> one (..., D) per output; starts: (D,) or (..., D) for each of them, or none for zero."""
        hidden = torch.tanh(z @ self.a).flatten(0, -2).chunk(len(self.b), dim=-1)
        if not starts:
            return tuple((part @ b).view(z.shape) for part, b in zip(hidden, self.b, strict=True))
        # The product adds to the start: one pass over the result instead of two.
        return tuple(
            torch.addmm(start.expand(z.shape).flatten(0, -2), part, b).view(z.shape)
            for start, part, b in zip(starts, hidden, self.b, strict=True)
        )
