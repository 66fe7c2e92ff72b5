"""Linear pre-fill: every token goes through the recurrent layers, only the last ones through GOLD (SPEC 5)."""

import dataclasses
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from goldfinch.inference.cpu_decode import fused_decoder
from goldfinch.mixers import KeyValueSource
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.state import BlockState, GoldState

# Tokens that go through the recurrent layers at once: bounds the memory of activations.
CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerState:
    """What the layers below GOLD leave behind: with the key cache, all that is needed to go on."""

    blocks: list[BlockState]
    """Of these layers."""
    recent: Tensor
    """(1, t, D): their outputs for the last 2G + 1 tokens, or for all where there are fewer."""

    def tensors(self) -> list[Tensor]:
        """All of them, for counting and saving."""
        return [self.recent, *(tensor for block in self.blocks for tensor in block.tensors())]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())


def tail_length(model: Decoder) -> int:
    """How many tokens must go through the GOLD layers for the last one's logits: 2G.

    Each GOLD block has two token shifts, and each of them reaches back one token.
    """
    return 2 * model.config.num_gold_layers


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut the tokens start .. stop - 1 at multiples of CHUNK: the same pieces, wherever a reading begins."""
    while start < stop:
        end = min((start // CHUNK + 1) * CHUNK, stop)
        yield start, end
        start = end


def read_lower(model: Decoder, ids: Tensor, state: LowerState | None) -> tuple[Tensor, LowerState]:
    """Tokens through the layers below GOLD: constant work for each.

    Args:
        model: any plan; without GOLD layers these are all layers.
        ids: (T,) int64, T >= 1.
        state: of the text before; None at its start. It is not changed.

    Returns:
        (1, T, D), the output of these layers, and the state after it.
    """
    layers = fused_decoder(model, len(ids)) or model
    x, blocks = layers.lower(model.embed(ids[None]), state.blocks if state else None)
    recent = x if state is None else torch.cat([state.recent, x], dim=1)
    # A copy, so that the state keeps no activations alive.
    return x, LowerState(blocks=blocks, recent=recent[:, -(tail_length(model) + 1) :].clone())


def read_upper(
    model: Decoder, recent: Tensor, new: int, states: list[BlockState] | None, cache: KeyValueSource, wanted: int = 1
) -> tuple[Tensor, list[BlockState]]:
    """The end of the text through the GOLD layers.

    Few tokens go on from the states before them. Of more, the last 2G and the wanted ones do without: the token before
    them seeds the first shift, what the other shifts lack reaches one token further with each, and is gone at the first
    that is wanted.

    Args:
        model: with GOLD layers.
        recent: outputs of the layers below for the last tokens, (B, t, D): as many as `LowerState.recent`, and those
            that are wanted but for one.
        new: tokens since `states`; all tokens of the text where there are none.
        states: of the GOLD layers; None where they were never run.
        cache: of all tokens.
        wanted: at the end.

    Returns:
        (B, wanted, D), their normalised hidden states, and the GOLD layers' states after the last.
    """
    tail = tail_length(model) + wanted - 1
    one = len(recent) == 1 and cache.query_positions is None
    layers = (fused_decoder(model, min(new, tail)) if one else None) or model
    if new <= tail:
        x, after = layers.upper(recent[:, -new:], states, cache)
    else:
        first = cast(Block, model.blocks[model.config.first_gold_layer])
        seed = BlockState(time_mix=GoldState(last=first.time_mix_norm(recent[:, -tail - 1])), channel_mix=None)
        x, after = layers.upper(recent[:, -tail:], [seed, *[None] * (model.config.num_gold_layers - 1)], cache)
    return model.output_norm(x[:, -wanted:]), after


def next_token_logits(model: Decoder, hidden: Tensor) -> Tensor:
    """The head on a few normalised hidden states: (T, D) -> (T, V) float32."""
    layers = fused_decoder(model, len(hidden))
    return layers.head(hidden) if layers is not None else model.head(hidden).float()
