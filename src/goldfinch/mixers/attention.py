"""The full-width attention time mixes: GPTAlpha (P26-29) and the Llama-like baseline (SPEC 3)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.layers.initial_values import output_norm_weight
from goldfinch.layers.norm import layer_norm
from goldfinch.layers.rotary import rotate
from goldfinch.layers.token_shift import DataDependentLerp, last_token, token_shift
from goldfinch.mixers.time_mix import TimeMix
from goldfinch.ops.attention import causal_attention
from goldfinch.state import AttentionState


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    rope: RopeConfig | None,
    state: AttentionState | None,
    document_starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Three of (B, T, D) -> attention output (B, T, D), and all keys and values so far, (B, H, n + T, N).

    With `document_starts`, (B, T), each document sees only itself. Positions continue across documents,
    since RoPE depends only on distances.
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    start = state.keys.shape[2] if state else 0
    q, k = rotate(q, start, rope), rotate(k, start, rope)
    if state:
        k, v = torch.cat([state.keys, k], dim=2), torch.cat([state.values, v], dim=2)
    return causal_attention(q, k, v, document_starts).transpose(1, 2).flatten(-2), k, v


class AttentionTimeMix(TimeMix):
    """Base of GPTAlpha and Llama: attention with a full-width key-value cache."""

    state_type = AttentionState
    rotates = True
    attends = True
    has_token_shift: ClassVar[bool]

    @classmethod
    def state_shapes(cls, config: ModelConfig, num_tokens: int) -> dict[str, tuple[int, ...] | None]:
        """Keys and values grow with the text."""
        cache = (config.num_heads, num_tokens, config.head_size)
        return {"last": (config.width,) if cls.has_token_shift else None, "keys": cache, "values": cache}


class GptAlpha(AttentionTimeMix):
    """The time mix of GPTAlpha: attention with data-dependent token shift and normalised q, k, v."""

    has_token_shift = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.rope = config.rope
        self.ddlerp = DataDependentLerp(width, ("q", "k", "v"), config.shift_rank)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.query_norm = layer_norm(width)
        self.key_norm = layer_norm(width)
        self.value_norm = layer_norm(width)
        self.norm = layer_norm(width)
        self.output = nn.Linear(width, width, bias=False)

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Set the norm before W_O; a new layer adds nothing."""
        nn.init.constant_(self.norm.weight, output_norm_weight(layer, num_layers))
        nn.init.zeros_(self.output.weight)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """(B, T, D) -> (B, T, D); document_starts: (B, T) bool, the tokens that begin a document (empty state only)."""
        x_q, x_k, x_v = self.ddlerp(x, token_shift(x, state.last if state else None, document_starts))
        q = self.query_norm(self.query(x_q))
        k = self.key_norm(self.key(x_k))
        v = self.value_norm(self.value(x_v))
        y, keys, values = _attend(q, k, v, self.num_heads, self.rope, state, document_starts)
        return self.output(self.norm(y)), AttentionState(last=last_token(x), keys=keys, values=values)


class LlamaAttention(AttentionTimeMix):
    """Plain multi-head attention, as in Llama."""

    has_token_shift = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.rope = config.rope
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """A new layer adds nothing."""
        nn.init.zeros_(self.output.weight)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """(B, T, D) -> (B, T, D); document_starts: (B, T) bool, the tokens that begin a document (empty state only)."""
        y, keys, values = _attend(
            self.query(x), self.key(x), self.value(x), self.num_heads, self.rope, state, document_starts
        )
        return self.output(y), AttentionState(last=None, keys=keys, values=values)
