"""Contexts that are kept for prompts which begin like them."""

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Iterator

from goldfinch.inference.context import Context
from goldfinch.serving.radix_tree import Ids, RadixTree

MIN_COMMON_TOKENS = 16
"""With fewer tokens in common, a prompt is read from its start: forking a context is hardly faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class CachedContext:
    """A context that is kept."""

    owner: str
    ids: Ids
    context: Context


@dataclasses.dataclass(frozen=True)
class CachedPrefix:
    """A context that ends with the longest known prefix of a prompt."""

    context: Context
    num_replayed: int
    """Tokens at its end that are pending: recurrent layers have to read them again."""


class PrefixCache:
    """The contexts that were used last. Those of one owner are never found by another, not even by their speed."""

    def __init__(self) -> None:
        self._trees: defaultdict[str, RadixTree[CachedContext]] = defaultdict(RadixTree)
        self._kept: OrderedDict[CachedContext, None] = OrderedDict()  # the last used is the last

    def __len__(self) -> int:
        """Number of contexts."""
        return len(self._kept)

    def __iter__(self) -> Iterator[Context]:
        return (kept.context for kept in self._kept)

    def add(self, owner: str, context: Context) -> None:
        """Keep a context, in place of those that it begins with and can go back to at no cost."""
        ids, tree = context_ids(context), self._trees[owner]
        for length, known in tree.prefixes(ids):
            if length == len(ids) or length in context.sequence.snapshots.states:
                self._remove(known)
        kept = CachedContext(owner, ids, context)
        tree.insert(ids, kept)
        self._kept[kept] = None

    def has_any(self, owner: str) -> bool:
        """Whether anything of an owner is kept."""
        return any(kept.owner == owner for kept in self._kept)

    def num_known(self, owner: str, ids: Ids) -> int:
        """How many of (T,) ids, at their start, some context of an owner has."""
        return self._trees[owner].find(ids)[0]

    def find(self, owner: str, ids: Ids, min_tokens: int = MIN_COMMON_TOKENS) -> CachedPrefix | None:
        """The longest known prefix of (T,) ids, all of them if possible; None if it has fewer than `min_tokens`."""
        num_common, found = self._trees[owner].find(ids)
        if num_common < min_tokens:
            return None
        # All of these begin with the common tokens; one may have a snapshot nearer to their end.
        best = max(found, key=lambda kept: _replay_start(kept.context, num_common))
        self._kept.move_to_end(best)
        context = best.context.fork()
        return CachedPrefix(context, context.truncate_lazily(num_common))

    def reclaim(self, needed: int) -> bool:
        """Free memory, at the expense of what was used longest ago; False if nothing is left to free.

        First keys and values that can be rebuilt, then whole contexts, until they held `needed` bytes. Less may be free
        then: others may share it.
        """
        freed = 0
        for kept in self._kept:
            cache = kept.context.sequence.key_value_cache
            if cache is not None and freed < needed:
                freed += cache.nbytes
                cache.clear()
        while self._kept and freed < needed:
            oldest = next(iter(self._kept))
            freed += oldest.context.nbytes
            self._remove(oldest)
        return freed > 0

    def _remove(self, kept: CachedContext) -> None:
        self._trees[kept.owner].remove(kept.ids)
        del self._kept[kept]


def context_ids(context: Context) -> Ids:
    """(T,) int64: all tokens of a context."""
    ids: Ids = context.sequence.key_cache.ids(0, len(context)).cpu().numpy()
    return ids


def _replay_start(context: Context, length: int) -> int:
    """The position from which a context is read again to go back to `length` tokens."""
    return length if length == len(context) else context.sequence.snapshots.nearest(length)[0]
