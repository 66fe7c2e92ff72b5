"""What a sequence carries from one call to the next: plain data, no policy (SPEC 4).

A state of None means the start of the text. B is the batch, D the width, H heads of N channels, n tokens seen. The
state of a time mix says whether it GROWS with the text, and which FP32_FIELDS are fp32 in every model.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclasses.dataclass(kw_only=True)
class RecurrentState:
    """Finch and Finch-C2."""

    GROWS: ClassVar = False
    FP32_FIELDS: ClassVar = ("wkv",)

    last: Tensor
    """(B, D): the mixer's input at the last token."""
    wkv: Tensor
    """(B, H, N, N) fp32, key x value."""


@dataclasses.dataclass(kw_only=True)
class AttentionState:
    """GPTAlpha and Llama: an ordinary key-value cache, full width, in every layer."""

    GROWS: ClassVar = True
    FP32_FIELDS: ClassVar = ()

    last: Tensor | None
    """(B, D): the mixer's input at the last token; None for Llama, which has no token shift."""
    keys: Tensor
    """(B, H, n, N), rotated."""
    values: Tensor
    """(B, H, n, N)."""


@dataclasses.dataclass(kw_only=True)
class GoldState:
    """GOLD: its keys and values are rebuilt from the model's one key cache."""

    GROWS: ClassVar = False
    FP32_FIELDS: ClassVar = ()

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


def stack_states(states: Sequence[Sequence[BlockState | None] | None]) -> list[BlockState | None] | None:
    """Stack the states of several sequences of the same layers into those of one batch; None if that is impossible.

    States at the start of a text (None), and those of layers whose state grows with the text, cannot be stacked.
    """
    given = [state for state in states if state is not None]
    if len(given) == 1 == len(states):
        return list(given[0])
    if len(given) < len(states):
        return None
    stacked: list[BlockState | None] = []
    for layer in zip(*given, strict=True):
        blocks = [block for block in layer if block is not None]
        if not blocks:
            stacked.append(None)
            continue
        mixes = [block.time_mix for block in blocks]
        if len(blocks) < len(layer) or any(mix.GROWS for mix in mixes):
            return None
        fields = {name: torch.cat([getattr(mix, name) for mix in mixes]) for name in vars(mixes[0])}
        channel_mixes = [block.channel_mix for block in blocks if block.channel_mix is not None]
        stacked.append(
            BlockState(
                time_mix=type(mixes[0])(**fields), channel_mix=torch.cat(channel_mixes) if channel_mixes else None
            )
        )
    return stacked


def unstack_states(states: Sequence[BlockState], batch: int) -> list[list[BlockState]]:
    """The inverse: the states of each sequence of a batch, copied."""
    if batch == 1:
        return [list(states)]

    def row(state: BlockState, index: int) -> BlockState:
        fields = {
            name: value[index : index + 1].clone() for name, value in vars(state.time_mix).items() if value is not None
        }
        channel_mix = None if state.channel_mix is None else state.channel_mix[index : index + 1].clone()
        return BlockState(time_mix=type(state.time_mix)(**fields), channel_mix=channel_mix)

    return [[row(state, index) for state in states] for index in range(batch)]


def repeat_state(states: Sequence[BlockState], count: int) -> list[BlockState]:
    """The states of one sequence as those of a batch of `count` equal ones, without copying them."""

    def repeated(tensor: Any) -> Any:
        return None if tensor is None else tensor.expand(count, *tensor.shape[1:])

    result = []
    for state in states:
        fields = {name: repeated(value) for name, value in vars(state.time_mix).items()}
        result.append(BlockState(time_mix=type(state.time_mix)(**fields), channel_mix=repeated(state.channel_mix)))
    return result
