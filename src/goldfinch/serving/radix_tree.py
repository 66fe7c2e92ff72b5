"""Values found by the longest prefix that their token ids have in common with others: a radix tree."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from goldfinch.inference.token_ids import num_common_ids

Ids = npt.NDArray[np.int64]
V = TypeVar("V")


class _Node(Generic[V]):
    """The ids on the way from its parent, what ends here, and what continues."""

    def __init__(self, edge: Ids, value: V | None = None) -> None:
        self.edge = edge
        self.value = value
        self.children: dict[int, _Node[V]] = {}

    def values(self) -> Iterator[V]:
        nodes = [self]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            if node.value is not None:
                yield node.value

    def split(self, length: int) -> "_Node[V]":
        """Put a node after the first `length` ids of the edge; returns the upper one, in place of this."""
        upper = _Node[V](self.edge[:length])
        self.edge = self.edge[length:]
        upper.children[int(self.edge[0])] = self
        return upper


class RadixTree(Generic[V]):
    """A radix tree whose edges hold any number of ids, so that it is as deep as texts part, not as they are long.

    >>> tree = RadixTree[str]()
    >>> tree.insert(np.array([1, 2, 3]), "a")
    >>> tree.insert(np.array([1, 2, 4, 5]), "b")
    >>> num_common, values = tree.find(np.array([1, 2, 4, 6]))
    >>> num_common, list(values)
    (3, ['b'])
    """

    def __init__(self) -> None:
        self._root = _Node[V](np.empty(0, np.int64))

    def insert(self, ids: Ids, value: V) -> None:
        """Put a value at the end of (T,) ids, in place of another there."""
        node, done = self._root, 0
        while done < len(ids):
            child = node.children.get(int(ids[done]))
            if child is None:
                node.children[int(ids[done])] = _Node(ids[done:].copy(), value)
                return
            common = num_common_ids(child.edge, ids[done:])
            if common < len(child.edge):
                child = node.children[int(ids[done])] = child.split(common)
            node, done = child, done + common
        node.value = value

    def find(self, ids: Ids) -> tuple[int, Iterator[V]]:
        """How many ids some value has in common with (T,) ids at the start, and all values that have these."""
        node, done = self._root, 0
        while done < len(ids) and (child := node.children.get(int(ids[done]))) is not None:
            common = num_common_ids(child.edge, ids[done:])
            node, done = child, done + common
            if common < len(child.edge):
                break
        return done, node.values()

    def prefixes(self, ids: Ids) -> list[tuple[int, V]]:
        """Length and value of everything that (T,) ids begin with, the shortest first."""
        found, node, done = list[tuple[int, V]](), self._root, 0
        while done < len(ids) and (child := node.children.get(int(ids[done]))) is not None:
            if num_common_ids(child.edge, ids[done:]) < len(child.edge):
                break
            node, done = child, done + len(child.edge)
            if node.value is not None:
                found.append((done, node.value))
        return found

    def remove(self, ids: Ids) -> None:
        """Take away the value at the end of (T,) ids.

        Raises:
            KeyError: there is none.
        """
        path, done = [self._root], 0
        while done < len(ids):
            child = path[-1].children.get(int(ids[done]))
            if child is None or not np.array_equal(child.edge, ids[done : done + len(child.edge)]):
                raise KeyError("no value has these ids")
            path.append(child)
            done += len(child.edge)
        if path[-1].value is None:
            raise KeyError("no value has these ids")
        path[-1].value = None
        while len(path) > 1:  # no node stays that neither has a value nor parts two texts
            node = path.pop()
            parent, first = path[-1], int(node.edge[0])
            if node.value is None and not node.children:
                del parent.children[first]
            elif node.value is None and len(node.children) == 1:
                (child,) = node.children.values()
                child.edge = np.concatenate([node.edge, child.edge])
                parent.children[first] = child
            else:
                return
