"""Choosing which documents are for validation."""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from goldfinch.data.shards import Split
from goldfinch.errors import UserError


class Splittable(Protocol):
    """A document, or a piece of a long one: text (`documents.Document`) or tokens (`indexed_dataset.TokenDocument`)."""

    @property
    def continues(self) -> bool:
        """Whether the next item continues the same document."""

    @property
    def length(self) -> int:
        """Number of characters or tokens."""

    def cut(self, at: int, margin: int) -> tuple[Self, Self | None]:
        """Split at `at`, up to `margin` earlier or later: the first part, and the rest if any."""


D = TypeVar("D", bound=Splittable)


def _draw(seed: int, index: int) -> float:
    """A number in [0, 1) that depends only on the seed and the position of the document in the input."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Assigns each document to training or validation, by a hash of the seed and its position in the input.

    Both splits get something: if one would be empty, the document that came closest is moved there. A single document
    is cut (text at the end of a paragraph), and its end is for validation.

    Attributes:
        fraction: of the documents, for validation, 0 < fraction < 1.
        seed: random seed.
        moved: position in the input of the document that is moved to the other split, if any.
        cut: length of the single document, if there is only one.
    """

    fraction: float
    seed: int
    moved: int | None = None
    cut: int | None = None

    @classmethod
    def plan(cls, documents: Iterable[Splittable], fraction: float, seed: int) -> "Splitter | None":
        """Read as many documents as needed to know that both splits get one. None: there are no documents.

        Raises:
            UserError: the only document is a single character or token.
        """
        smallest = largest = (_draw(seed, 0), 0)
        count = length = 0
        for document in documents:
            draw = (_draw(seed, count), count)
            smallest, largest = min(smallest, draw), max(largest, draw)
            if smallest[0] < fraction <= largest[0]:
                return cls(fraction=fraction, seed=seed)
            length += document.length
            count += not document.continues
        if count == 0:
            return None
        if count > 1:
            # All were drawn for validation, or none.
            return cls(fraction=fraction, seed=seed, moved=(largest if largest[0] < fraction else smallest)[1])
        if length < 2:
            raise UserError("a single character or token cannot be split into training and validation: give more text")
        return cls(fraction=fraction, seed=seed, cut=length)

    def assign(self, documents: Iterable[D]) -> Iterator[tuple[Split, D]]:
        """Each document, or piece of one, with its split."""
        if self.cut is not None:
            return self._cut(documents, self.cut)
        return self._by_document(documents)

    def _by_document(self, documents: Iterable[D]) -> Iterator[tuple[Split, D]]:
        index = 0
        for document in documents:
            validation = (_draw(self.seed, index) < self.fraction) != (index == self.moved)
            yield "validation" if validation else "train", document
            index += not document.continues

    def _cut(self, pieces: Iterable[D], total: int) -> Iterator[tuple[Split, D]]:
        at = min(max(1, round(total * (1 - self.fraction))), total - 1)
        margin = int(min(at, total - at) / 2)
        split: Split = "train"
        for piece in pieces:
            if split == "validation" or piece.length < at:
                yield split, piece
            else:
                first, rest = piece.cut(at, margin)
                yield "train", first
                split = "validation"
                if rest is not None:
                    yield split, rest
            at -= piece.length
