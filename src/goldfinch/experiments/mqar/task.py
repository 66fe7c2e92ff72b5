"""Multi-query associative recall (MQAR): key-value pairs first, then keys alone, whose values are to be recalled."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from goldfinch.errors import UserError

# Exponent a of the power law that queries stand by; the value of the Zoology paper.
POWER = 0.01


class MqarBatch(NamedTuple):
    """B sequences with P queries each."""

    ids: Tensor
    """(B, T) int64."""
    positions: Tensor
    """(B, P) int64, where the queries stand, in the order of their pairs."""
    values: Tensor
    """(B, P) int64, what is to be predicted there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarTask:
    """The task of the Zoology paper (arXiv 2312.04927, section 4 and its appendix on synthetics), exactly:

    - ids below V/2 are keys, the others values; both are drawn without replacement for each sequence;
    - the first 2 P tokens are the pairs k1 v1 k2 v2 ... kP vP;
    - each key comes once more, as a query. The S = (T - 2 P) // 2 places for queries are every other token after the
      pairs. Place i = 1 .. S is drawn with a probability proportional to i^(a - 1), a = 0.01, without replacement, pair
      after pair: most queries come soon after the pairs, some late;
    - at a query, and nowhere else, the model is to predict the key's value; it is not on_result the answer afterwards;
    - all other tokens are drawn from the whole vocabulary but for the keys of the sequence. (There the paper draws
      those, too: with its 8192 ids that is rare, with few ids it would make the task ambiguous.)
    """

    vocab_size: int
    """V, even."""
    length: int
    """T, tokens in a sequence."""
    pairs: int
    """P, key-value pairs in a sequence, and queries."""

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.length < 4 * self.pairs:
            raise UserError(
                f"{self.pairs} pairs and as many queries at every other place need at least {4 * self.pairs} tokens, "
                f"not {self.length}"
            )
        if self.vocab_size % 2 or self.vocab_size < 2 * self.pairs:
            raise UserError(
                f"{self.pairs} pairs need an even vocabulary of {2 * self.pairs} or more, not {self.vocab_size}"
            )

    def __str__(self) -> str:
        return f"{self.length} tokens, {self.pairs} pairs"

    def batch(self, size: int, seed: int, stream: int, step: int) -> MqarBatch:
        """Sequences as a pure function of (seed, stream, step).

        Args:
            size: B.
            seed: 0 <= seed < 2**64.
            stream: sequences of different streams have nothing to do with each other: training, test.
            step: number of the batch in its stream, below 2**32.
        """
        half, pairs = self.vocab_size // 2, self.pairs
        # The raw numbers of Philox stay the same in all versions of NumPy.
        random = np.random.Philox(key=np.array([seed, stream << 32 | step], dtype=np.uint64))

        def uniform(*shape: int) -> np.ndarray:
            """Numbers between 0 and 1, both excluded."""
            raw = random.random_raw(int(np.prod(shape))).reshape(shape)
            return ((raw >> np.uint64(11)) + 0.5) * 2.0**-53

        keys = uniform(size, half).argsort(axis=1)
        values = half + uniform(size, half).argsort(axis=1)[:, :pairs]
        places = (self.length - 2 * pairs) // 2
        # The order of exponential times with these rates is the order of draws without replacement.
        rates = np.arange(1, places + 1) ** (POWER - 1)
        drawn = (-np.log(uniform(size, places)) / rates).argsort(axis=1)[:, :pairs]
        positions = 2 * pairs + 2 * drawn

        others = np.concatenate([keys[:, pairs:], np.broadcast_to(np.arange(half, 2 * half), (size, half))], axis=1)
        chosen = (uniform(size, self.length) * others.shape[1]).astype(np.int64)
        ids = np.take_along_axis(others, chosen, axis=1)
        ids[:, 0 : 2 * pairs : 2] = keys[:, :pairs]
        ids[:, 1 : 2 * pairs : 2] = values
        np.put_along_axis(ids, positions, keys[:, :pairs], axis=1)
        return MqarBatch(*(torch.from_numpy(part.astype(np.int64)) for part in (ids, positions, values)))
