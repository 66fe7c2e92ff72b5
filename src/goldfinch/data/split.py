"""Which text is for validation."""

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from goldfinch.data.shards import Split
from goldfinch.data.sources import Document
from goldfinch.errors import UserError


def _draw(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the place of the document in the input."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _boundary(text: str, at: int, margin: int) -> int:
    """The end of a paragraph, else of a line, else of a word, that is nearest to `at` and within `margin` of it."""
    for end in (r"\n[ \t\r]*\n", r"\n", r" "):
        found = [match.end() for match in re.compile(end).finditer(text, max(0, at - margin - 1), at + margin)]
        if found:
            return min(found, key=lambda place: abs(place - at))
    return at


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Sends each document to training or validation, by a hash of the seed and its place in the input.

    Both splits get something: if the draw leaves one empty, the document that came closest to it is moved there. A
    single document is cut, at the end of a paragraph, and its end is for validation.

    Attributes:
        fraction: the part that is for validation, 0 < fraction < 1.
        seed: another seed, another choice.
        moved: place in the input of the document that is moved to the other split, if any.
        cut: length in characters of the single document, if there is only one.
    """

    fraction: float
    seed: int
    moved: int | None = None
    cut: int | None = None

    @classmethod
    def plan(cls, documents: Iterable[Document], fraction: float, seed: int) -> "Splitter | None":
        """Read as many documents as it takes to see that both splits get one. None: there is no document.

        Raises:
            UserError: the only document is a single character.
        """
        lowest = highest = (_draw(seed, 0), 0)
        count = characters = 0
        for document in documents:
            draw = (_draw(seed, count), count)
            lowest, highest = min(lowest, draw), max(highest, draw)
            if lowest[0] < fraction <= highest[0]:
                return cls(fraction=fraction, seed=seed)
            characters += len(document.text)
            count += not document.continues
        if count == 0:
            return None
        if count > 1:
            # All were drawn for validation, or none.
            return cls(fraction=fraction, seed=seed, moved=(highest if highest[0] < fraction else lowest)[1])
        if characters < 2:
            raise UserError("one character of text cannot be split for training and validation; give more text")
        return cls(fraction=fraction, seed=seed, cut=characters)

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[Split, Document]]:
        """Each document, or piece of one, with its split."""
        if self.cut is not None:
            return self._cut(documents, self.cut)
        return self._by_document(documents)

    def _by_document(self, documents: Iterable[Document]) -> Iterator[tuple[Split, Document]]:
        index = 0
        for document in documents:
            validation = (_draw(self.seed, index) < self.fraction) != (index == self.moved)
            yield "validation" if validation else "train", document
            index += not document.continues

    def _cut(self, pieces: Iterable[Document], characters: int) -> Iterator[tuple[Split, Document]]:
        at = min(max(1, round(characters * (1 - self.fraction))), characters - 1)
        margin = int(min(at, characters - at) / 2)
        split: Split = "train"
        for piece in pieces:
            length = len(piece.text)
            if split == "validation" or length < at:
                yield split, piece
            else:
                end = _boundary(piece.text, at, margin)
                yield "train", replace(piece, text=piece.text[:end], continues=False)
                split = "validation"
                if end < length:
                    yield split, replace(piece, text=piece.text[end:])
            at -= length
