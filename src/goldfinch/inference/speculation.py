"""Guessing tokens by prompt lookup: what followed the last few tokens when they stood together before.

The model then looks at all guesses in one step, and what it would not have written itself is dropped: the text is the
one that it writes without guesses, for greedy writing and for sampling. What a step saves is reading the weights, and
rebuilding keys and values, once for each token.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from goldfinch.errors import UserError

LONGEST_PAUSE = 31  # steps
LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens that must be the same for what followed them to be a guess


@dataclasses.dataclass(kw_only=True)
class Speculation:
    """How many tokens to guess at most, and how it went: pass one to `Context.generate` and look at it afterwards."""

    most: int = 8
    """Tokens guessed in one step at most; 0 for none. Fewer are while few of them are right."""
    guessed: int = 0
    """Tokens guessed so far."""
    right: int = 0
    """Of these, what the model wrote as well."""
    steps: int = 0
    """Steps of the model so far."""
    written: int = 0
    """Tokens written so far."""

    def __post_init__(self) -> None:
        if self.most < 0:
            raise UserError(f"the number of tokens to guess must not be negative: {self.most}")
        self._next = self.most
        self._pause = self._wait = 0  # steps without guesses after the last wrong one, and how many of them are left

    @property
    def rate(self) -> float:
        """The fraction of guesses that were right; 0 where there were none."""
        return self.right / max(self.guessed, 1)

    def summary(self) -> str:
        """One line for people."""
        guesses = f", {self.right} of {self.guessed} guessed right ({self.rate:.0%})" if self.guessed else ""
        return f"{self.written} tokens in {self.steps} steps{guesses}"

    def now(self) -> int:
        """How many to guess in the next step."""
        return 0 if self._wait else min(self._next, self.most)

    def count(self, guessed: int, right: int) -> None:
        """Take in how a step went: twice as many next time where all were right, else as many as were, and one.

        Where none was right, some steps go without, twice as many as the last time: a step with guesses takes longer.
        """
        self.guessed, self.right = self.guessed + guessed, self.right + right
        self.steps, self.written = self.steps + 1, self.written + 1 + right
        self._wait = max(self._wait - 1, 0)
        if guessed:
            self._next = 2 * guessed if right == guessed else right + 1
            self._pause = 0 if right else min(2 * self._pause + 1, LONGEST_PAUSE)
            self._wait = self._pause


class PromptLookup:
    """The tokens of a text, for finding what followed the last of them before."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.asarray(ids, dtype=np.int32)
        self._length = len(ids)

    def add(self, ids: Sequence[int]) -> None:
        """Go on with these."""
        needed = self._length + len(ids)
        if needed > len(self._ids):
            self._ids = np.resize(self._ids, max(2 * needed, 1024))
        self._ids[self._length : needed] = ids
        self._length = needed

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that followed the latest earlier place where the text reads as it does at its end."""
        ids = self._ids[: self._length]
        for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            if most < 1 or self._length <= size:
                continue
            end = ids[-size:]
            # Where the last of them stands; then, of those places, where the others stand before it.
            places = np.flatnonzero(ids[size - 1 : -1] == end[-1])
            for back in range(1, size):
                places = places[ids[places + size - 1 - back] == end[-1 - back]]
            if len(places):
                start = int(places[-1]) + size
                return ids[start : start + most].tolist()
        return []
