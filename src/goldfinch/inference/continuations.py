"""Several continuations of one context in one pass: the context is read once, and none of them changes it.

Every row starts from the same states and sees the same past, which is kept once and shared by all. Rows of different
lengths are padded at their ends, where causality keeps the padding from everything that counts; the states after them
are wrong and are dropped.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.inference.prefill import next_token_logits, tail_length
from goldfinch.inference.score import MAX_LOGITS, token_logprobs
from goldfinch.inference.sequence import TokenSequence
from goldfinch.layers.token_shift import token_shift
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.ops.attention import KeyValueBlock
from goldfinch.state import BlockState, GoldState, repeat_state


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Tokens after a context, and how many of them, at the end, are scored; those before are only read."""

    ids: tuple[int, ...]
    """At least one, all in the vocabulary."""
    num_scored: int
    """1 ... len(ids); after an empty context at most len(ids) - 1, for nothing predicts its first token."""


@torch.inference_mode()
def score_continuations(
    sequence: TokenSequence, continuations: Sequence[Continuation]
) -> list[tuple[list[float], bool]]:
    """Score several continuations of a sequence, which stays as it is.

    Continuations that differ in their last token only are one row. The rows, padded to the longest, go through the
    model at once: choose how many there are by the memory that these activations take.

    Args:
        sequence: what has been read; it may be empty.
        continuations: any number.

    Returns:
        For each, the log-probabilities of the scored tokens in nats, and whether all of them are the most likely ones.
    """
    # Tokens that are predicted by a token of the continuation; the first one is predicted by the sequence itself.
    # The last token predicts nothing that is scored: it is not read.
    num_inside = [min(each.num_scored, len(each.ids) - 1) for each in continuations]
    wanted: dict[tuple[int, ...], int] = {}
    for each, count in zip(continuations, num_inside, strict=True):
        if count:
            wanted[each.ids[:-1]] = max(count, wanted.get(each.ids[:-1], 0))
    hidden = dict(zip(wanted, _hidden(sequence, list(wanted), list(wanted.values())), strict=True)) if wanted else {}
    rows, targets, firsts = list[Tensor](), list[int](), list[int]()
    for each, count in zip(continuations, num_inside, strict=True):
        if count:
            rows.append(hidden[each.ids[:-1]][-count:])
            targets += each.ids[-count:]
        if count < each.num_scored:
            firsts.append(each.ids[0])
    first_scores = iter(_scores(sequence.compute_logits()[None], firsts) if firsts else ())
    inside_scores = _scores_after(sequence.model, rows, targets)
    results = []
    for each, count in zip(continuations, num_inside, strict=True):
        scores = [next(first_scores)] if count < each.num_scored else []
        scores += itertools.islice(inside_scores, count)
        results.append(([logprob for logprob, _ in scores], all(is_best for _, is_best in scores)))
    return results


def _scores_after(model: Decoder, hidden: Sequence[Tensor], targets: Sequence[int]) -> Iterator[tuple[float, bool]]:
    """Scores of n tokens after normalised hidden states, which are (n, D) one after the other."""
    if not hidden:
        return
    size = max(1, MAX_LOGITS // model.config.vocab_size)
    for number, some in enumerate(torch.cat(list(hidden)).split(size)):
        yield from _scores(next_token_logits(model, some), targets[number * size : number * size + len(some)])


def _scores(logits: Tensor, targets: Sequence[int]) -> list[tuple[float, bool]]:
    """Log-probability of each token, and whether it is the most likely one; logits as in `token_logprobs`."""
    logprobs, is_best = token_logprobs(logits, torch.tensor(targets, device=logits.device))
    return list(zip(logprobs.tolist(), is_best.tolist(), strict=True))


def _hidden(sequence: TokenSequence, inputs: Sequence[tuple[int, ...]], wanted: Sequence[int]) -> list[Tensor]:
    """Read rows of tokens after a sequence: the normalised hidden states of the last `wanted` of each, (wanted, D)."""
    model = sequence.model
    state = sequence.current_state()
    lengths = [len(row) for row in inputs]
    num_rows, longest = len(inputs), max(lengths)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs], device=model.device)
    x0 = model.embed(ids)
    x, _ = model.lower(x0, None if state is None else repeat_state(state.blocks, num_rows))
    if sequence.key_value_cache is None:
        return [
            model.output_norm(x[row, length - count : length])
            for row, (length, count) in enumerate(zip(lengths, wanted, strict=True))
        ]
    past = len(sequence)
    if state is not None:
        x = torch.cat([state.tail.expand(num_rows, -1, -1), x], dim=1)
    num_tail = x.shape[1] - longest  # tokens of the past at the start of x
    # Each row runs through the GOLD layers from 2G tokens before the first that is wanted (see `tail_length`) or, if
    # there are not so many, from the start of the text.
    begins = [num_tail + length - count for length, count in zip(lengths, wanted, strict=True)]  # wanted ones
    starts = [max(begin - tail_length(model), 0) for begin in begins]
    num_queries = max(begin + count - start for begin, count, start in zip(begins, wanted, starts, strict=True))
    start = torch.tensor(starts, device=x.device)[:, None]
    index = (start + torch.arange(num_queries, device=x.device)).clamp(max=x.shape[1] - 1)
    row_index = torch.arange(num_rows, device=x.device)[:, None]
    source = _SharedPast(sequence, ids, x0, x[:, num_tail:], index + past - num_tail)
    first = cast(Block, model.blocks[model.config.first_gold_layer])
    seeds = first.time_mix_norm(x[row_index[:, 0], (start[:, 0] - 1).clamp(min=0)])
    seeds = seeds.masked_fill(start == 0, 0)  # nothing is before the text
    seed = BlockState(time_mix=GoldState(last=seeds), channel_mix=None)
    upper, _ = model.upper(x[row_index, index], [seed, *[None] * (model.config.num_gold_layers - 1)], source)
    upper = model.output_norm(upper)
    return [
        upper[row, begin - begun : begin - begun + count]
        for row, (begin, begun, count) in enumerate(zip(begins, starts, wanted, strict=True))
    ]


class _SharedPast:
    """Keys and values of several continuations of one sequence (a `KeyValueSource`).

    Args:
        sequence: what all of them have read, P tokens.
        ids: the tokens after it, (B, T).
        x0: their embeddings, (B, T, D).
        x: outputs of the layers below GOLD for them, (B, T, D).
        query_positions: where in the text the queries stand, (B, Q).
    """

    def __init__(self, sequence: TokenSequence, ids: Tensor, x0: Tensor, x: Tensor, query_positions: Tensor) -> None:
        model, key_cache = sequence.model, sequence.key_cache
        if model.token_cat is None or key_cache.format is None:
            raise ValueError("a model without GOLD layers has no keys and values to expand")
        self.query_positions = query_positions
        self._past: KeyValueCache | None = sequence.key_value_cache if len(sequence) else None
        self._start, self._shape = len(sequence), x.shape
        latents = key_cache.format.decode(key_cache.format.encode(model.token_cat.compress(x)), x.dtype)
        if self._past is not None:  # what a token's keys and values take from the one before it
            last = len(sequence) - 1, len(sequence)
            before = model.embed(key_cache.ids(*last)), key_cache.latents(*last, x.dtype)
            x0, latents = (
                torch.cat([part.expand(len(x), 1, -1), new], dim=1)
                for part, new in zip(before, (x0, latents), strict=True)
            )
        shared = model.token_cat.expand(x0, latents)
        num_before = x0.shape[1] - x.shape[1]
        self._embeddings, self._embeddings_before, self._keys, self._keys_before = (
            part[:, num_before:].flatten(0, 1)
            for whole in (shared.embeddings, shared.keys)
            for part in (whole, token_shift(whole, None))
        )

    def __len__(self) -> int:
        return self._start + self._shape[1]

    def keys_values(self, layer: Gold) -> Iterator[KeyValueBlock]:
        """Those of the past, the same for all, then those of each continuation."""
        if self._past is not None:
            yield from self._past.keys_values(layer)
        weights, values = layer.mix(self._embeddings, self._embeddings_before)
        keys = layer.keys(self._keys, self._keys_before, weights).view(self._shape)
        yield KeyValueBlock(
            layer.split_heads(layer.rotate(keys, self._start)), layer.split_heads(values.view(self._shape))
        )
