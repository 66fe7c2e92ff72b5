"""How probable a text is: log-probabilities of its tokens, and what follows from them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from goldfinch.inference.prefill import chunks, next_token_logits
from goldfinch.inference.sequence import TokenSequence

MAX_LOGITS = 1 << 25  # numbers that exist at once: 128 MiB in fp32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """The log-probability of a token, before penalties, temperature and truncation."""

    token_id: int
    logprob: float
    """Nats."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens there and their log-probabilities, as many as were asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities of the tokens of a text, in nats.

    >>> score = Score(token_ids=(7, 8), logprobs=(-1.0, -2.0), is_greedy=False, num_bytes=4)
    >>> score.total, score.nats_per_token
    (-3.0, 1.5)
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token, given all before it."""
    is_greedy: bool
    """Whether each token is the most likely one: greedy decoding would generate this text."""
    num_bytes: int | None
    """UTF-8 bytes of the text; None for token ids without a tokenizer."""

    @property
    def total(self) -> float:
        """Log-probability of the text."""
        return math.fsum(self.logprobs)

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-probability: the loss."""
        return -self.total / len(self.logprobs)

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of text, in bits: comparable between tokenizers.

        Raises:
            ValueError: the text was given as ids of a model without a tokenizer.
        """
        if not self.num_bytes:
            raise ValueError("bits per byte need a text: this score is of token ids without a tokenizer")
        return -self.total / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)


@torch.inference_mode()
def append_and_score(sequence: TokenSequence, ids: Tensor) -> tuple[list[float], bool]:
    """Append (T,) ids to a sequence that is not empty: the log-probability of each, and whether all are the argmax."""
    parts = [token_logprobs(logits, targets) for logits, targets in _append_and_predict(sequence, ids)]
    logprobs, is_best = (torch.cat(each) for each in zip(*parts, strict=True))
    return logprobs.tolist(), bool(is_best.all())


@torch.inference_mode()
def append_with_logprobs(sequence: TokenSequence, ids: Tensor, num_top: int) -> list[TokenLogprob]:
    """Append (T,) ids to a sequence that is not empty: the log-probability of each, and the most likely ones there."""
    return [
        logprob
        for logits, targets in _append_and_predict(sequence, ids)
        for logprob in logprobs_with_alternatives(logits, targets.tolist(), num_top)
    ]


def logprobs_with_alternatives(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Log-probabilities of T tokens by (T, V) logits, and of the `num_top` most likely ones in their places."""
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(num_top, logprobs.shape[-1]))
    rows = zip(tokens, logprobs, ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token_id=token, logprob=float(row[token]), top=tuple(zip(top, top_values, strict=True)))
        for token, row, top, top_values in rows
    ]


def _append_and_predict(sequence: TokenSequence, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Append (T,) ids, T >= 1; yields (t, V) logits with the (t,) ids that they predict, in order."""
    model = sequence.model
    yield sequence.compute_logits()[None], ids[:1]
    before = len(sequence)
    rows = max(1, MAX_LOGITS // model.config.vocab_size)
    for start, stop in chunks(before, before + len(ids), sequence.chunk_size):
        hidden = sequence.advance(ids[start - before : stop - before], stop - start)
        following = ids[start - before + 1 : stop - before + 1]
        for targets, some in zip(following.split(rows), hidden.split(rows), strict=False):
            if len(targets):  # none follows a chunk of one token at the very end
                yield next_token_logits(model, some[: len(targets)]), targets


def token_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and whether each is the most likely one.

    Args:
        logits: (T, V) float32, or (1, V) for several tokens after the same text.
        targets: (T,) int64.

    Returns:
        (T,) float64 in nats, and (T,) bool.
    """
    chosen = logits.expand(len(targets), -1).gather(-1, targets[:, None])[:, 0]
    return chosen.double() - logits.logsumexp(-1).double(), logits.argmax(-1) == targets
