"""Linear prefill: every token goes through the recurrent layers, only the last few through GOLD (SPEC 5).

Everything here takes one or several sequences; B of them go through the weights together.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from goldfinch.cache.key_value_cache import KeyValueCache, expand_newest
from goldfinch.inference.cpu_decode import fused_decoder
from goldfinch.mixers import KeyValueSource
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.state import BlockState, GoldState, stack_states, unstack_states

CHUNK_SIZE = 1024
"""Tokens that go through the recurrent layers at once: bounds the memory of activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerState:
    """The state of the layers below GOLD: with the key cache, all that is needed to continue a sequence."""

    blocks: list[BlockState]
    """One for each of these layers."""
    tail: Tensor
    """(1, t, D): outputs of these layers for the last 2G + 1 tokens, or for all tokens if there are fewer."""

    def tensors(self) -> list[Tensor]:
        """All tensors, for counting and saving."""
        return [self.tail, *(tensor for block in self.blocks for tensor in block.tensors())]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())


def tail_length(model: Decoder) -> int:
    """Number of tokens that must go through the GOLD layers for the last token's logits: 2G.

    1. The logits need the last token's output of the top GOLD block.
    2. Each block has two token shifts, and each shift makes its output at token t depend on its input at t - 1.
    3. So G blocks reach back 2G tokens: the block inputs of the last 2G tokens, and of the one before them, which only
       seeds the first shift. Keys and values do not count: they come from the key cache.
    """
    return 2 * model.config.num_gold_layers


def chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the tokens start .. stop - 1 at multiples of `size`: the same pieces wherever reading starts."""
    while start < stop:
        end = min((start // size + 1) * size, stop)
        yield start, end
        start = end


class LowerOutput(NamedTuple):
    """What the layers below GOLD make of T tokens of each of B sequences."""

    x: Tensor
    """(B, T, D): the output of these layers."""
    latents: Tensor | None
    """(B, T, R); None in models without GOLD layers."""
    states: list[LowerState]
    """The state of each sequence after them."""


def read_lower(model: Decoder, ids: Tensor, states: Sequence[LowerState | None]) -> LowerOutput:
    """Run tokens through the layers below GOLD: constant work per token.

    Args:
        model: any layer plan; without GOLD layers these are all layers.
        ids: (B, T) int64, T >= 1.
        states: of the B sequences before these tokens, left unchanged; None at the start of a text.
    """
    before = [None if state is None else state.blocks for state in states]
    fused = fused_decoder(model, ids.numel())
    if fused is not None:
        x, latents, after = fused.lower(ids, before)
    else:
        x, after = _lower(model, model.embed(ids), before)
        latents = model.token_cat.compress(x) if model.token_cat is not None else None
    num_kept = tail_length(model) + 1
    result = []
    for row, (state, blocks) in enumerate(zip(states, after, strict=True)):
        new = x[row : row + 1]
        last = [new[:, -num_kept:]]
        if state is not None and new.shape[1] < num_kept:
            last.insert(0, state.tail[:, max(0, state.tail.shape[1] + new.shape[1] - num_kept) :])
        # `cat` copies, so that the state keeps no activations alive.
        result.append(LowerState(blocks=blocks, tail=torch.cat(last, dim=1)))
    return LowerOutput(x, latents, result)


def _lower(
    model: Decoder, x0: Tensor, states: Sequence[list[BlockState] | None]
) -> tuple[Tensor, list[list[BlockState]]]:
    """`Decoder.lower` with a state for each sequence."""
    if len(states) == 1:
        x, after = model.lower(x0, states[0])
        return x, [after]
    stacked = stack_states(states)
    if stacked is not None:
        x, after = model.lower(x0, stacked)
        return x, unstack_states(after, len(states))
    # States that grow with the text, or texts that only begin here, cannot be stacked.
    rows = [model.lower(x0[row : row + 1], state) for row, state in enumerate(states)]
    return torch.cat([x for x, _ in rows]), [after for _, after in rows]


def read_upper(
    model: Decoder,
    tail: Tensor,
    num_new: int,
    states: Sequence[list[BlockState]] | None,
    cache: KeyValueSource | Sequence[KeyValueSource],
    num_wanted: int = 1,
) -> tuple[Tensor, list[list[BlockState]]]:
    """Run the end of a text through the GOLD layers.

    1. A few new tokens continue from the states before them.
    2. Otherwise the last 2G + wanted - 1 tokens start without states: the token before them seeds the first shift.
    3. What the other shifts then lack reaches one token further up with each shift (see `tail_length`), and has
       disappeared at the first token that is wanted.

    Args:
        model: with GOLD layers.
        tail: outputs of the layers below for the last tokens, (B, t, D): those of `LowerState.tail`, followed by all
            wanted tokens but one.
        num_new: tokens since `states`; all tokens of the text where there are none.
        states: of the GOLD layers, for each of the B sequences; None if they have never run.
        cache: keys and values of all tokens: of each sequence, or one that says where its queries are.
        num_wanted: how many tokens, at the end, are wanted.

    Returns:
        (B, wanted, D), normalised hidden states, and the GOLD layers' states after the last token of each sequence.
    """
    num_tail = tail_length(model) + num_wanted - 1
    num_layers = model.config.num_gold_layers
    batch = len(tail)
    if num_new <= num_tail:
        x = tail[:, -num_new:]
        before: Sequence[Sequence[BlockState | None] | None] = states or [None] * batch
    else:
        first = cast(Block, model.blocks[model.config.first_gold_layer])
        x = tail[:, -num_tail:]
        seeds = first.time_mix_norm(tail[:, -num_tail - 1])
        before = [
            [BlockState(time_mix=GoldState(last=seeds[row : row + 1]), channel_mix=None), *[None] * (num_layers - 1)]
            for row in range(batch)
        ]
    caches = list(cache) if isinstance(cache, Sequence) else [cache]
    fused = fused_decoder(model, x[..., 0].numel()) if len(caches) == batch else None
    if fused is not None and all(each.query_positions is None for each in caches):
        hidden, after = fused.upper(x, before, caches)
    else:
        if len(caches) == batch and x.shape[1] == 1:
            expand_newest([each for each in caches if isinstance(each, KeyValueCache)])
        shared = caches[0] if len(caches) == 1 else caches
        x, stacked = model.upper(x, stack_states(before), shared)
        hidden, after = model.output_norm(x[:, -num_wanted:]), unstack_states(stacked, batch)
    return hidden[:, -num_wanted:], after


def next_token_logits(model: Decoder, hidden: Tensor) -> Tensor:
    """Apply the head to a few normalised hidden states: (T, D) -> (T, V) float32."""
    fused = fused_decoder(model, len(hidden))
    return fused.head(hidden) if fused is not None else model.head(hidden).float()
