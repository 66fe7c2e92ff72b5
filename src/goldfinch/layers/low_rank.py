"""The low-rank function inside every lora of the paper."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """base + tanh(z A) B, for one or several outputs.

    The paper's lora(z) = lambda + tanh(z A) B (P1-3) bases at lambda, its loradapt(z) = z + tanh(z C) E (P16) at z.
    """

    def __init__(self, width: int, rank: int, outputs: int = 1) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(width, outputs * rank))
        """(D, outputs * rank): the first factors side by side."""
        self.b = nn.Parameter(torch.empty(outputs, rank, width))
        """(outputs, rank, D)."""

    parameter_roles: ClassVar = {"a": "vector", "b": "vector"}

    def forward(self, z: Tensor, *bases: Tensor) -> tuple[Tensor, ...]:
        """(..., D) -> one (..., D) per output; bases: (D,) or (..., D) for each of them, or none for zero."""
        hidden = torch.tanh(z @ self.a).flatten(0, -2).chunk(len(self.b), dim=-1)
        if not bases:
            return tuple((part @ b).view(z.shape) for part, b in zip(hidden, self.b, strict=True))
        # The product is added to the base in one pass over the result instead of two.
        return tuple(
            torch.addmm(base.expand(z.shape).flatten(0, -2), part, b).view(z.shape)
            for base, part, b in zip(bases, hidden, self.b, strict=True)
        )
