"""What a model costs, as numbers; for presets they are stored, so that showing them needs no PyTorch.

`goldfinch.model.accounting` computes them. `python -m goldfinch.model.accounting` prints what `preset_costs.json` must
hold, which a test compares.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

DEFAULT_SEQUENCE_LENGTH = 8192
DEFAULT_ID_BYTES: Literal[4] = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accounting:
    """What one model costs. FLOPs and bytes per token are for one sequence."""

    sequence_length: int
    """Sequence length for the FLOPs below."""
    parameters: int
    """All parameters."""
    parameters_as_published: int
    """Parameters including those that published checkpoints store and never use."""
    embedding_parameters: int
    """Embedding and head, both V x D."""
    training_flops_per_token: int
    """Forward and backward, mean over a sequence of `sequence_length` (attention sees half of it on average)."""
    prefill_flops_per_token: int
    """Prefill of a prompt of `sequence_length`, mean: every layer below the GOLD layers, and W_KD. Without what is paid
    once per prompt: the last 2G tokens through the GOLD layers, and the head (SPEC 5)."""
    decode_flops_per_token: int
    """Decoding token number `sequence_length` with cached keys and values of all tokens before it."""
    decode_rebuilding_flops_per_token: int
    """The same if GOLD layers rebuild them all from the key cache; equal in models without GOLD."""
    recurrence_flops_per_token: int
    """WKV6 of all layers, which is part of each forward above; besides it and attention there are matrix products."""
    cache_bytes_per_token: int
    """Bytes that each token adds: GOLD's latent and id, once for all layers; keys and values of every other attention
    layer. 0 in recurrent models."""
    state_bytes: int
    """Bytes that do not grow: S of the recurrent layers, and the last inputs that token shifts reach back to."""
    transformer_bytes_per_token: int
    """Keys and values of a Transformer of this depth and width in bf16, 2 * 2 D L."""

    @property
    def cache_ratio(self) -> float | None:
        """How many times smaller than a Transformer's the cache is, without the state; None if there is no cache."""
        return self.transformer_bytes_per_token / self.cache_bytes_per_token if self.cache_bytes_per_token else None

    def total_bytes(self, tokens: int) -> int:
        """Cache and state of a sequence of `tokens`."""
        return tokens * self.cache_bytes_per_token + self.state_bytes


def preset_costs(preset: str) -> Accounting | None:
    """The stored costs of a preset with the World vocabulary, at the default sequence length; None without any."""
    stored = json.loads((Path(__file__).parent / "preset_costs.json").read_text(encoding="utf-8")).get(preset)
    return None if stored is None else Accounting(**stored)
