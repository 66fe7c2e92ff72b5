"""Contexts that are kept for prompts which begin like them."""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

from goldfinch.inference.context import Context

SHORTEST = 16
"""Tokens in common from which going back in a context is worth it."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A context that ends with the longest known beginning of a prompt."""

    context: Context
    length: int
    replayed: int
    """Tokens that were read again on the way back."""


class PrefixCache:
    """The contexts that were used last, up to a number of bytes.

    Args:
        max_bytes: of all contexts, each counted as if it shared nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._contexts: OrderedDict[tuple[int, ...], Context] = OrderedDict()  # the last used is the last

    @property
    def nbytes(self) -> int:
        """Bytes of all contexts."""
        return sum(context.nbytes for context in self._contexts.values())

    def add(self, context: Context) -> None:
        """Keep a context, in place of those that it begins with and of those used longest ago."""
        ids = tuple(context.ids())
        for known in [known for known in self._contexts if ids[: len(known)] == known]:
            del self._contexts[known]
        self._contexts[ids] = context
        while self._contexts and self.nbytes > self._max_bytes:
            self._contexts.popitem(last=False)

    def take(self, ids: Sequence[int]) -> Found | None:
        """A context of its own with the longest known beginning of a prompt, but for its last token at most."""
        best, length = None, SHORTEST - 1
        for known in self._contexts:
            common = _common(known, ids)
            if common > length:
                best, length = known, common
        if best is None:
            return None
        self._contexts.move_to_end(best)
        context = self._contexts[best].fork()
        length = min(length, len(ids))
        return Found(context, length, context.truncate(length))


def _common(known: Sequence[int], ids: Sequence[int]) -> int:
    count = 0
    for ours, theirs in zip(known, ids, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
