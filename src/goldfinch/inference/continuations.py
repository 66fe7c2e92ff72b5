"""Several continuations of one context in one pass: the context is read once, and none of them changes it.

Every row starts from the same states and sees the same past, which is kept once and shared by all. Rows of different
lengths are padded at their ends, where causality keeps the padding from everything that counts; the states after them
are wrong and are dropped.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.inference.prefill import next_token_logits, tail_length
from goldfinch.inference.score import MAX_LOGITS, token_logprobs
from goldfinch.inference.sequence import TokenSequence
from goldfinch.layers.token_shift import token_shift
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.ops.attention import KeyValueBlock
from goldfinch.state import BlockState, GoldState


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
    model = sequence.model
    # The last token of a continuation is predicted and predicts nothing: it is not read.
    inputs = list(dict.fromkeys(each.ids[:-1] for each in continuations if len(each.ids) > 1))
    rows = {row: index for index, row in enumerate(inputs)}
    wanted = [0] * len(inputs)  # of each row, how many predictions at its end
    for each in continuations:
        if len(each.ids) > 1:
            row = rows[each.ids[:-1]]
            wanted[row] = max(wanted[row], min(each.num_scored, len(each.ids) - 1))
    hidden = _hidden(sequence, inputs, wanted) if inputs else []
    predictions, targets = list[Tensor](), list[int]()
    first = None  # what the sequence itself predicts
    firsts = list[int]()
    for number, each in enumerate(continuations):
        after = min(each.num_scored, len(each.ids) - 1)  # tokens that tokens of the continuation predict
        if after:
            predictions.append(hidden[rows[each.ids[:-1]]][-after:])
            targets += each.ids[-after:]
        if after < each.num_scored:
            firsts.append(number)
    scored = _score_rows(model, torch.cat(predictions), targets) if predictions else []
    if firsts:
        first = sequence.compute_logits()[None]
        ids = torch.tensor([continuations[number].ids[0] for number in firsts], device=first.device)
        first_scores = dict(zip(firsts, zip(*_lists(*token_logprobs(first, ids)), strict=True), strict=True))
    results, done = [], 0
    for number, each in enumerate(continuations):
        after = min(each.num_scored, len(each.ids) - 1)
        own = scored[done : done + after]
        if after < each.num_scored:
            own = [first_scores[number], *own]
        results.append(([logprob for logprob, _ in own], all(is_best for _, is_best in own)))
        done += after
    return results


def _lists(logprobs: Tensor, is_best: Tensor) -> tuple[list[float], list[bool]]:
    return logprobs.tolist(), is_best.tolist()


def _score_rows(model: Decoder, hidden: Tensor, targets: list[int]) -> list[tuple[float, bool]]:
    """(n, D) hidden states and the tokens that follow them: the log-probability of each, and whether it is the best."""
    result = list[tuple[float, bool]]()
    ids = torch.tensor(targets, device=hidden.device)
    size = max(1, MAX_LOGITS // model.config.vocab_size)
    for some, expected in zip(hidden.split(size), ids.split(size), strict=True):
        result += zip(*_lists(*token_logprobs(next_token_logits(model, some), expected)), strict=True)
    return result


def _hidden(sequence: TokenSequence, inputs: Sequence[tuple[int, ...]], wanted: Sequence[int]) -> list[Tensor]:
    """Read rows of tokens after a sequence: the normalised hidden states of the last `wanted` of each, (wanted, D)."""
    model = sequence.model
    state = sequence.current_state()
    lengths = [len(row) for row in inputs]
    num_rows, longest = len(inputs), max(lengths)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs], device=model.device)
    x0 = model.embed(ids)
    x, _ = model.lower(x0, None if state is None else _repeat(state.blocks, num_rows))
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
    num_queries = max(
        begin + count - start for begin, count, start in zip(begins, wanted, starts, strict=True)
    )
    start = torch.tensor(starts, device=x.device)[:, None]
    index = (start + torch.arange(num_queries, device=x.device)).clamp(max=x.shape[1] - 1)
    row_index = torch.arange(num_rows, device=x.device)[:, None]
    source = _SharedPast(sequence, ids, x0, x[:, num_tail:], index + past - num_tail)
    first = model.blocks[model.config.first_gold_layer]
    seeds = first.time_mix_norm(x[row_index[:, 0], (start[:, 0] - 1).clamp(min=0)])  # type: ignore[operator]
    seeds = seeds.masked_fill(start == 0, 0)  # nothing is before the text
    seed = BlockState(time_mix=GoldState(last=seeds), channel_mix=None)
    upper, _ = model.upper(x[row_index, index], [seed, *[None] * (model.config.num_gold_layers - 1)], source)
    upper = model.output_norm(upper)
    return [
        upper[row, begin - begun : begin - begun + count]
        for row, (begin, begun, count) in enumerate(zip(begins, starts, wanted, strict=True))
    ]


def _repeat(states: Sequence[BlockState], count: int) -> list[BlockState]:
    """The states of one sequence as those of a batch of equal ones."""

    def repeated(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.expand(count, *tensor.shape[1:])

    return [
        BlockState(
            time_mix=type(state.time_mix)(**{name: repeated(value) for name, value in vars(state.time_mix).items()}),
            channel_mix=repeated(state.channel_mix),
        )
        for state in states
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
        assert model.token_cat is not None and key_cache.format is not None
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
