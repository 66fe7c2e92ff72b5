"""Channel mixes: the feed-forward half of a layer."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goldfinch.layers.initial_values import mixing_vector
from goldfinch.layers.token_shift import last_token, token_shift
from goldfinch.ops.elementwise import lerp, squared_relu


class RwkvChannelMix(nn.Module):
    """The channel mix of all models but Llama (P22-25)."""

    def __init__(self, width: int, channel_width: int) -> None:
        super().__init__()
        self.mu_r = nn.Parameter(torch.empty(width))
        self.mu_k = nn.Parameter(torch.empty(width))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, channel_width, bias=False)
        self.value = nn.Linear(channel_width, width, bias=False)

    parameter_roles: ClassVar = {"mu_r": "vector", "mu_k": "vector"}

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Set the mixing vectors; a new channel mix adds nothing."""
        for mu in (self.mu_r, self.mu_k):
            mu.copy_(mixing_vector("channel mix", layer, num_layers, len(mu)))
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(
        self, x: Tensor, last: Tensor | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) and the (B, D) before it -> (B, T, D) and its last input; `document_starts` as in `token_shift`."""
        difference = token_shift(x, last, document_starts) - x
        r = self.receptance(lerp(x, difference, self.mu_r))
        k = squared_relu(self.key(lerp(x, difference, self.mu_k)))
        return torch.sigmoid(r) * self.value(k), last_token(x)


class SwiGlu(nn.Module):
    """Llama's feed-forward: down(silu(gate x) * up x). It has no token shift and so no state."""

    def __init__(self, width: int, channel_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, channel_width, bias=False)
        self.up = nn.Linear(width, channel_width, bias=False)
        self.down = nn.Linear(channel_width, width, bias=False)

    def forward(self, x: Tensor, last: None = None, *, document_starts: Tensor | None = None) -> tuple[Tensor, None]:
        """(B, T, D) -> (B, T, D), each token by itself, so documents do not matter."""
        return self.down(F.silu(self.gate(x)) * self.up(x)), last
