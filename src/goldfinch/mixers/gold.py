"""GOLD, the attention time mix whose keys and values come from the compressed key memory (P17-21)."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from goldfinch.config import ModelConfig
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.norm import layer_norm
from goldfinch.layers.rotary import rotate
from goldfinch.layers.token_shift import DataDependentLerp, last_token, lerp, token_shift
from goldfinch.ops.attention import blockwise_causal_attention
from goldfinch.state import GoldState


class KeyValueSource(Protocol):
    """Where GOLD layers get keys and values: all tokens so far, at once or block by block."""

    def __len__(self) -> int:
        """S, tokens so far, the new ones included."""

    def keys_values(self, layer: "Gold") -> Iterable[tuple[Tensor, Tensor]]:
        """The layer's keys and values, two of (B, S_i, D) a block, before the rotation; the S_i add up to S."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpandedMemory:
    """A stretch of the key memory rebuilt to full width, the same for all GOLD layers (the output of TokenCat)."""

    keys: Tensor
    """kD, (B, S, D), unit rms (P15)."""
    embeddings: Tensor
    """e, the embeddings of the same tokens, (B, S, D), unit rms."""
    keys_before: Tensor | None = None
    """kD of the token before the stretch, (B, D); None at the start of the text."""
    embeddings_before: Tensor | None = None
    """e of that token."""

    def __len__(self) -> int:
        return self.keys.shape[1]

    def keys_values(self, layer: "Gold") -> Iterable[tuple[Tensor, Tensor]]:
        """All in one block."""
        return (layer.expand(self),)


class Gold(nn.Module):
    """The time mix of GOLD. Only its queries see the hidden state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.rope = config.rope
        self.ddlerp = DataDependentLerp(width, ("q",), config.shift_rank)
        self.query = nn.Linear(width, width, bias=False)
        self.memory_mu = nn.Parameter(torch.empty(width))
        """mu, (D,): mixes embeddings before they choose how keys and values are mixed."""
        self.mu_k = nn.Parameter(torch.empty(width))
        self.mu_v = nn.Parameter(torch.empty(width))
        self.shift_low_rank = LowRank(width, config.shift_rank, outputs=2)
        self.key_adapter = LowRank(width, config.adapter_rank)
        self.value_adapter = LowRank(width, config.adapter_rank)
        self.query_norm = layer_norm(width)
        self.key_norm = layer_norm(width)
        self.value_norm = layer_norm(width)
        self.norm = layer_norm(width)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, state: GoldState | None, memory: KeyValueSource) -> tuple[Tensor, GoldState]:
        """Attend from the T new tokens to all S of the memory, whose last T are the new tokens themselves.

        Args:
            x: (B, T, D).
            state: None at the start of the text.
            memory: of S >= T tokens.
        """
        (x_q,) = self.ddlerp(x, token_shift(x, state.last if state else None))
        q = self._split_heads(self.query_norm(self.query(x_q)))
        q = rotate(q, len(memory) - q.shape[2], self.rope)
        y = blockwise_causal_attention(q, self._rotated(memory), len(memory)).transpose(1, 2).flatten(-2)
        return self.output(self.norm(y)), GoldState(last=last_token(x))

    def _rotated(self, memory: KeyValueSource) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys, rotated, and values, two of (B, H, S_i, N) a block."""
        start = 0
        for k, v in memory.keys_values(self):
            yield rotate(self._split_heads(k), start, self.rope), self._split_heads(v)
            start += k.shape[1]

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, N)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def expand(self, memory: ExpandedMemory) -> tuple[Tensor, Tensor]:
        """This layer's keys and values (P17-21): two of (B, S, D), before the rotation."""
        keys, embeddings = memory.keys, memory.embeddings
        keys_before = token_shift(keys, memory.keys_before)
        embeddings_before = token_shift(embeddings, memory.embeddings_before)
        shift_k, shift_v = self.shift_low_rank(lerp(embeddings, embeddings_before, self.memory_mu))
        k = lerp(keys, keys_before, self.mu_k + shift_k)
        v = lerp(embeddings, embeddings_before, self.mu_v + shift_v)
        k = self.key_norm(k + self.key_adapter(k)[0])
        v = self.value_norm(v + self.value_adapter(v)[0])
        return k, v
