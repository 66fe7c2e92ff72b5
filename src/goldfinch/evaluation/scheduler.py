"""Many requests on one engine: shared prefixes are read once and forked, what follows them goes through in batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from goldfinch.evaluation.prefix_tree import Node, prefix_tree
from goldfinch.inference.context import Context
from goldfinch.inference.continuations import Continuation, score_continuations
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.inference.score import append_and_score

T = TypeVar("T")

MAX_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a batch, padding included, by the type of device: bounds the memory of activations. On a CPU more only mean
more padding."""
MIN_BATCH_TOKENS = 128
"""From this many tokens on, a batch takes no text that is more than a quarter shorter than the longest: it would be
padded."""


@dataclasses.dataclass(kw_only=True)
class TokenCounts:
    """What sharing has saved."""

    asked: int = 0
    """Tokens of all requests, each read whole."""
    computed: int = 0
    """Tokens that went through the model, padding included."""

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(asked=self.asked + other.asked, computed=self.computed + other.computed)

    def summary(self) -> str:
        """One line for people.

        >>> TokenCounts(asked=3000, computed=1000).summary()
        '3,000 tokens asked, 1,000 computed: 3.0 times fewer'
        """
        factor = f": {self.asked / self.computed:.1f} times fewer" if self.computed else ""
        return f"{self.asked:,} tokens asked, {self.computed:,} computed{factor}"


@dataclasses.dataclass(frozen=True)
class Request:
    """How probable some tokens are after others."""

    context: tuple[int, ...]
    """At least one token."""
    continuation: tuple[int, ...]
    """At least one token."""


class Scheduler:
    """Answers requests in the order of their shared prefixes.

    Args:
        lm: the model.
        latents: how compressed keys are stored, as in `LanguageModel.context`.
        batch_size: maximum number of texts in a batch, within `MAX_BATCH_TOKENS`; None for no other limit. It changes
            how long requests take, and their results by rounding errors only.
    """

    def __init__(self, lm: LanguageModel, *, latents: str | None = None, batch_size: int | None = None) -> None:
        self._lm = lm
        self._latents = latents
        self._max_tokens = MAX_BATCH_TOKENS.get(lm.model.device.type, MAX_BATCH_TOKENS["cpu"])
        self._max_rows = batch_size or self._max_tokens
        self.counts = TokenCounts()
        """Of all requests so far."""

    def score(
        self, requests: Sequence[Request], answered: Callable[[int, float, bool], None] | None = None
    ) -> list[tuple[float, bool]]:
        """Score requests.

        Args:
            requests: any number.
            answered: called for each, in the order in which they are answered: its number, and the two results.

        Returns:
            For each request, the log-probability of its continuation in nats, and whether greedy decoding gives it.
        """
        # Requests with equal inputs are one text of the tree: choices that differ in their last token, repeated ones.
        numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault((request.context, request.continuation[:-1]), []).append(number)
            self.counts.asked += len(request.context) + len(request.continuation) - 1
        groups = list(numbers.values())
        texts = [context for context, _ in numbers]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)

        def finish(group: int, scores: Sequence[tuple[list[float], bool]]) -> None:
            for number, (logprobs, is_greedy) in zip(groups[group], scores, strict=True):
                results[number] = sum(logprobs), is_greedy
                if answered is not None:
                    answered(number, *results[number])

        for context, node in self._contexts(texts):
            rest = {
                group: [
                    Continuation(
                        (*requests[number].context[node.stop :], *requests[number].continuation),
                        len(requests[number].continuation),
                    )
                    for number in groups[group]
                ]
                for group in node.leaves
            }
            lengths = {group: len(rows[0].ids) - 1 for group, rows in rest.items()}
            for batch in self._batches(lengths):
                if lengths[batch[0]] > CHUNK_SIZE:
                    finish(batch[0], [self._score_long(context, row) for row in rest[batch[0]]])
                    continue
                rows = [row for group in batch for row in rest[group]]
                scores = iter(score_continuations(context.sequence, rows))
                self.counts.computed += len(batch) * max(lengths[group] for group in batch)
                for group in batch:
                    finish(group, [next(scores) for _ in groups[group]])
        return results

    def _score_long(self, context: Context, row: Continuation) -> tuple[list[float], bool]:
        """A continuation in chunks, in memory that does not grow with its activations."""
        sequence = context.sequence.fork()
        ids = torch.tensor(row.ids, device=sequence.model.device)
        read = len(ids) - row.num_scored
        if read:
            sequence.append(ids[:read])
        self.counts.computed += len(ids)
        return append_and_score(sequence, ids[read:])

    def read(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Context]]:
        """Read texts: the number of each and a context of its own, in the order of their shared prefixes.

        Args:
            texts: token ids, at least one each.
        """
        self.counts.asked += sum(map(len, texts))
        for context, node in self._contexts(texts):
            for leaf in node.leaves:
                own = context.fork()
                rest = texts[leaf][node.stop :]
                if rest:
                    own.read(rest)
                self.counts.computed += len(rest)
                yield leaf, own

    def _contexts(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[Context, Node]]:
        """The nodes of the tree of these texts that have leaves, with a context that has read their prefix."""
        root = prefix_tree(texts)
        waiting = [(self._lm.context(self._latents), root)]
        while waiting:
            context, node = waiting.pop()
            if node.stop > node.start:
                context = context.fork()
                context.read(texts[node.text][node.start : node.stop])
                self.counts.computed += node.stop - node.start
            if node.leaves:
                yield context, node
            elif len(node.children) > 1 and len(context):
                context.sequence.compute_logits()  # expands the keys and values, which the forks then share
            waiting += [(context, child) for child in reversed(node.children)]

    def _batches(self, lengths: dict[int, int]) -> Iterator[list[int]]:
        """Cut what follows one prefix into batches of similar lengths, the longest first.

        Args:
            lengths: number -> tokens. More than a chunk of them are a batch of their own.
        """
        batch: list[int] = []
        for number in sorted(lengths, key=lambda number: -lengths[number]):
            longest = lengths[batch[0]] if batch else lengths[number]
            num_rows = max(1, min(self._max_rows, self._max_tokens // max(longest, 1)))
            is_padding = len(batch) * longest >= MIN_BATCH_TOKENS and 4 * lengths[number] < 3 * longest
            if batch and (longest > CHUNK_SIZE or len(batch) >= num_rows or is_padding):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch
