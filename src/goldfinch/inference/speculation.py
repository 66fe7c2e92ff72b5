"""Prompt-lookup speculative decoding: drafts are what followed the last few tokens where they occurred before.

The model verifies all draft tokens in one step, and those that it would not have sampled itself are rejected: the text
is the one that it generates without drafts, for greedy decoding and for sampling. A step saves reading the weights, and
rebuilding keys and values, once for each accepted token.
"""

from collections.abc import Sequence

import numpy as np

from goldfinch.argument_checks import integer

DEFAULT_MAX_DRAFT_TOKENS = 8
MAX_PAUSE = 31  # steps
MAX_MATCH, MIN_MATCH = 4, 2  # tokens that must be equal for what followed them to be a draft


class DraftPolicy:
    """How many tokens to draft in the next step: more while drafts are accepted, fewer and more rarely otherwise.

    Args:
        max_draft_tokens: maximum number of tokens in a step; 0 for none.

    Raises:
        UserError: it is not a whole number, or negative.
    """

    def __init__(self, max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS) -> None:
        self.max_draft_tokens = self._next = integer("max_draft_tokens", max_draft_tokens)
        self._pause = self._wait = 0  # steps without drafts after the last rejected one, and how many of them are left

    def num_next(self) -> int:
        """Number of tokens to draft in the next step."""
        return 0 if self._wait else min(self._next, self.max_draft_tokens)

    def record(self, num_draft: int, num_accepted: int) -> None:
        """Learn from a step: twice as many next time if all were accepted, otherwise one more than were accepted.

        If none was accepted, some steps go without drafts, twice as many as the last time: a step with drafts takes
        longer.
        """
        self._wait = max(self._wait - 1, 0)
        if num_draft:
            self._next = 2 * num_draft if num_accepted == num_draft else num_accepted + 1
            self._pause = 0 if num_accepted else min(2 * self._pause + 1, MAX_PAUSE)
            self._wait = self._pause


class PromptLookup:
    """The tokens of a text, to find what followed its last tokens where they occurred before."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.asarray(ids, dtype=np.int32)
        self._length = len(ids)

    def add(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        needed = self._length + len(ids)
        if needed > len(self._ids):
            self._ids = np.resize(self._ids, max(2 * needed, 1024))
        self._ids[self._length : needed] = ids
        self._length = needed

    def find(self, max_tokens: int) -> list[int]:
        """Up to this many tokens that followed the longest and latest earlier occurrence of the last tokens."""
        ids = self._ids[: self._length]
        for size in range(MAX_MATCH, MIN_MATCH - 1, -1):
            if max_tokens < 1 or self._length <= size:
                continue
            end = ids[-size:]
            # Where the last of them occurs; of those positions, where the others precede it.
            found = np.flatnonzero(ids[size - 1 : -1] == end[-1])
            for back in range(1, size):
                found = found[ids[found + size - 1 - back] == end[-1 - back]]
            if len(found):
                start = int(found[-1]) + size
                return ids[start : start + max_tokens].tolist()
        return []
