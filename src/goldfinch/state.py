"""What a sequence carries from one call to the next: plain data, no policy (SPEC 4).

A state of None means the start of the text. B is the batch, D the width, H heads of N channels, n tokens seen.
"""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(kw_only=True)
class RecurrentState:
    """Finch and Finch-C2."""

    last: Tensor
    """(B, D): the mixer's input at the last token."""
    wkv: Tensor
    """(B, H, N, N) fp32, key x value."""


@dataclasses.dataclass(kw_only=True)
class AttentionState:
    """GPTAlpha and Llama: an ordinary key-value cache, full width, in every layer."""

    last: Tensor | None
    """(B, D): the mixer's input at the last token; None for Llama, which has no token shift."""
    keys: Tensor
    """(B, H, n, N), rotated."""
    values: Tensor
    """(B, H, n, N)."""


@dataclasses.dataclass(kw_only=True)
class GoldState:
    """GOLD: its keys and values are rebuilt from the model's one key cache."""

    last: Tensor
    """(B, D): the mixer's input at the last token."""


@dataclasses.dataclass(kw_only=True)
class BlockState:
    """One layer."""

    time_mix: RecurrentState | AttentionState | GoldState
    channel_mix: Tensor | None
    """(B, D): the channel mix's input at the last token; None for SwiGLU, which has no token shift."""

    def tensors(self) -> list[Tensor]:
        """All of them, for counting and saving."""
        values = [*vars(self.time_mix).values(), self.channel_mix]
        return [value for value in values if value is not None]


@dataclasses.dataclass(kw_only=True)
class KeyCacheState:
    """All that GOLD layers need of the past: shared by every layer, R + 1 numbers a token."""

    ids: Tensor
    """(B, n) int64."""
    latents: Tensor
    """(B, n, R)."""


@dataclasses.dataclass(kw_only=True)
class ModelState:
    """The whole model after n tokens."""

    blocks: list[BlockState]
    key_cache: KeyCacheState | None
    """None in models without GOLD layers."""
