"""Token shift and its data-dependent mixing (P1-3)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from goldfinch.layers.initial_values import mixing_vector
from goldfinch.layers.low_rank import LowRank
from goldfinch.ops.elementwise import lerp


def token_shift(x: Tensor, last: Tensor | None, document_starts: Tensor | None = None) -> Tensor:
    """The step before each step: x[t-1].

    Args:
        x: (B, T, D).
        last: (B, D), the token before x[:, 0]; None at the start of the text, where it is zero.
        document_starts: (B, T) bool, the tokens that begin a document: zero is before them, too. None for none.
    """
    before = torch.zeros_like(x[:, :1]) if last is None else last[:, None]
    shifted = torch.cat([before, x[:, :-1]], dim=1)
    return shifted if document_starts is None else shifted.masked_fill(document_starts[..., None], 0)


def last_token(x: Tensor) -> Tensor:
    """(B, T, D) -> (B, D), what the next `token_shift` needs; a copy, so that a state keeps no activations alive."""
    return x[:, -1].clone()


class DataDependentLerp(nn.Module):
    """ddlerp (P1-3): mixes each token with the one before it, per channel and per use, by weights that the data choose.

    ddlerp_s(a, b) = a + (b - a) * (mu_s + tanh((a + (b - a) * mu_x) A_s) B_s)
    """

    def __init__(self, width: int, uses: tuple[str, ...], rank: int) -> None:
        super().__init__()
        self.uses = uses
        self.mu_x = nn.Parameter(torch.empty(width))
        self.mu = nn.Parameter(torch.empty(len(uses), width))
        """(uses, D); the paper's lambda."""
        self.low_rank = LowRank(width, rank, outputs=len(uses))

    parameter_roles: ClassVar = {"mu_x": "vector", "mu": "vector"}

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Set the mixing vectors by their use."""
        width = len(self.mu_x)
        self.mu_x.copy_(mixing_vector("x", layer, num_layers, width))
        for row, use in zip(self.mu, self.uses, strict=True):
            row.copy_(mixing_vector(use, layer, num_layers, width))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Two of (B, T, D) -> one (B, T, D) per use."""
        difference = before - x
        weights = self.low_rank(lerp(x, difference, self.mu_x), *self.mu)
        return tuple(lerp(x, difference, weight) for weight in weights)
