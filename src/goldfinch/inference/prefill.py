"""Linear pre-fill: every token goes through the recurrent layers, only the last ones through GOLD (SPEC 5)."""

import dataclasses
from typing import cast

import torch
from torch import Tensor

from goldfinch.inference.key_memory import BlockedKeyMemory
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.state import BlockState, GoldState

# Tokens that go through the recurrent layers at once: bounds the memory of activations.
CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerStates:
    """What the layers remember of a sequence, besides the key memory."""

    lower: list[BlockState]
    """Of the layers below GOLD."""
    upper: list[BlockState]
    """Of the GOLD layers."""


def tail_length(model: Decoder) -> int:
    """How many tokens must go through the GOLD layers for the last one's logits: 2G.

    Each GOLD block has two token shifts, and each of them reaches back one token.
    """
    return 2 * model.config.gold_layers


def prefill(
    model: Decoder, ids: Tensor, states: LayerStates | None, memory: BlockedKeyMemory | None
) -> tuple[Tensor, LayerStates]:
    """Read tokens: constant work for each, and for the last 2G of them attention to everything in the key memory.

    Args:
        model: any plan; without GOLD layers every layer sees every token.
        ids: (T,) int64, T >= 1.
        states: of the text before; None at its start. They are not changed.
        memory: of the text before, grown by these tokens; None in models without GOLD layers. When the reading is
            broken off, it is as it was.

    Returns:
        (D,), the normalised hidden state of the last token, and the states after it.
    """
    before = len(memory) if memory is not None else 0
    try:
        x, lower = _read_lower(model, ids, states, memory)
        x, upper = _read_upper(model, x, len(ids), states, memory) if memory is not None else (x, [])
    except BaseException:
        if memory is not None:
            memory.truncate(before)
        raise
    return model.output_norm(x[0, -1]), LayerStates(lower=lower, upper=upper)


def _read_lower(
    model: Decoder, ids: Tensor, states: LayerStates | None, memory: BlockedKeyMemory | None
) -> tuple[Tensor, list[BlockState]]:
    """All tokens through the layers below GOLD and into the memory; returns the last 2G + 1 outputs, (1, t, D)."""
    lower = states.lower if states else None
    recent = None
    for chunk in ids.split(CHUNK):
        x, lower = model.lower(model.embed(chunk[None]), lower)
        if memory is not None and model.token_cat is not None:
            memory.append(chunk, model.token_cat.compress(x)[0])
        recent = x if recent is None else torch.cat([recent, x], dim=1)
        recent = recent[:, -(tail_length(model) + 1) :].clone()
    assert recent is not None
    assert lower is not None
    return recent, lower


def _read_upper(
    model: Decoder, x: Tensor, length: int, states: LayerStates | None, memory: BlockedKeyMemory
) -> tuple[Tensor, list[BlockState]]:
    """The end of what was read through the GOLD layers.

    Few tokens go on from the states before them. Of more, the last 2G do without: the token before them seeds the first
    shift, what the other shifts lack reaches one token further with each, and is gone at the last.
    """
    tail = tail_length(model)
    if length <= tail:
        return model.upper(x[:, -length:], states.upper if states else None, memory)
    first = cast(Block, model.blocks[model.config.first_gold_layer])
    seed = BlockState(time_mix=GoldState(last=first.time_mix_norm(x[:, -tail - 1])), channel_mix=None)
    return model.upper(x[:, -tail:], [seed, *[None] * (model.config.gold_layers - 1)], memory)
