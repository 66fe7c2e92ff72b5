"""Which prefixes of many requests are read once: a tree over token ids."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from goldfinch.inference.token_ids import num_common_ids

MIN_SAVED_TOKENS = 32
"""Tokens that reading a prefix once must save. A pass of its own costs as much as some tokens in a larger one."""


@dataclasses.dataclass
class Node:
    """A prefix that is read once: tokens start .. stop - 1 after those of its parent."""

    start: int
    """Tokens that the parents have read."""
    stop: int
    """Tokens read here, theirs included."""
    text: int
    """Number of a text that begins with these tokens."""
    leaves: list[int] = dataclasses.field(default_factory=list)
    """Numbers of the texts whose rest is read after this prefix, each on its own."""
    children: "list[Node]" = dataclasses.field(default_factory=list)
    """Longer prefixes."""


def prefix_tree(texts: Sequence[Sequence[int]], min_saved: int = MIN_SAVED_TOKENS) -> Node:
    """Find the prefixes that are worth a pass of their own.

    A prefix of k texts that is n tokens longer than the one before it saves (k - 1) n tokens.

    Args:
        texts: token ids, any number, of any lengths; equal ones are allowed.
        min_saved: tokens that each prefix must save.

    Returns:
        The root, a prefix of no tokens. Every text is a leaf of one node; leaves and children are in the order of
        their ids, so that what is alike is close together.
    """
    # Big-endian bytes are compared as fast as memory is read, in the order of the ids.
    keys = [np.asarray(text, dtype=">u4") for text in texts]
    order = sorted(range(len(texts)), key=lambda number: keys[number].tobytes())
    root = Node(start=0, stop=0, text=order[0] if order else -1)
    if not order:
        return root
    common = np.array([0, *(num_common_ids(keys[a], keys[b]) for a, b in itertools.pairwise(order))])
    waiting = [(0, len(order), root)]  # ranges of sorted texts, and the prefix that they have in common and is read
    while waiting:
        first, last, node = waiting.pop()
        if last - first == 1:
            node.leaves.append(order[first])
            continue
        length = int(common[first + 1 : last].min())
        if (last - first - 1) * (length - node.stop) >= max(min_saved, 1):
            child = Node(start=node.stop, stop=length, text=order[first])
            node.children.append(child)
            node = child
        borders = [first, *(first + 1 + np.flatnonzero(common[first + 1 : last] == length)), last]
        waiting += [(int(a), int(b), node) for a, b in zip(borders[-2::-1], borders[:0:-1], strict=True)]
    return root
