"""Contexts that are kept for prompts which begin like them."""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

from goldfinch.inference.context import Context

MIN_COMMON_TOKENS = 16
"""With fewer tokens in common, a prompt is read from its start: forking a context is hardly faster."""


@dataclasses.dataclass(frozen=True)
class CachedPrefix:
    """A context that ends with the longest known prefix of a prompt."""

    context: Context
    num_replayed: int
    """Tokens that recurrent layers read again to go back to its end."""


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

    def find(self, ids: Sequence[int]) -> CachedPrefix | None:
        """The longest known prefix of a prompt, all of it if possible; None if none is long enough."""
        common = {known: _num_common(known, ids) for known in self._contexts}
        best = max(common, key=lambda known: common[known], default=None)
        if best is None or common[best] < MIN_COMMON_TOKENS:
            return None
        self._contexts.move_to_end(best)
        context = self._contexts[best].fork()
        return CachedPrefix(context, context.truncate(common[best]))


def _num_common(known: Sequence[int], ids: Sequence[int]) -> int:
    count = 0
    for ours, theirs in zip(known, ids, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
