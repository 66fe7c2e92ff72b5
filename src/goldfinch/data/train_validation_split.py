"""Choosing which documents are for validation."""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, TypeVar

from goldfinch.data.shards import Split
from goldfinch.errors import UserError


class Splittable(Protocol):
    """A document, or a piece of a long one: text (`documents.Document`) or tokens (`indexed_dataset.TokenDocument`)."""

    @property
    def name(self) -> str:
        """Where it comes from."""

    @property
    def continues(self) -> bool:
        """Whether the next item continues the same document."""

    @property
    def length(self) -> int:
        """Number of characters or tokens."""

    @property
    def can_be_cut(self) -> bool:
        """Whether its parts are documents of their own."""

    def cut(self, at: int, margin: int) -> tuple[Self, Self | None]:
        """Split at `at`, up to `margin` earlier or later: the first part, and the rest if any."""


# Documents whose lengths are held in memory to split them by text.
MAX_WEIGHED = 10_000
# Of several documents, none is cut into parts shorter than this.
MIN_PART = 32

D = TypeVar("D", bound=Splittable)


def _draw(seed: int, index: int) -> float:
    """A number in [0, 1) that depends only on the seed and the position of the document in the input."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A document that is cut: its end is for validation.

    Attributes:
        index: its position in the input.
        name: where it comes from.
        at: characters or tokens for training.
        length: of the document.
    """

    index: int
    name: str
    at: int
    length: int

    @property
    def margin(self) -> int:
        """How far the cut may be from `at`, to be at the end of a paragraph."""
        return min(self.at, self.length - self.at) // 10


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Assigns each document to training or validation, by a hash of the seed and its position in the input.

    Up to `MAX_WEIGHED` documents, lengths are known, and validation gets the fraction of the text: whole documents in
    the order of their hashes while they fit, and the end of one more (text up to the end of a paragraph) where they
    leave too much of a gap. With more documents, each is for validation with a probability of `fraction`.

    Both splits get something.

    Attributes:
        fraction: for validation, 0 < fraction < 1.
        seed: random seed.
        validation: positions in the input of the documents for validation; None: by their hashes.
        cut: the document that is cut, if any.
    """

    fraction: float
    seed: int
    validation: frozenset[int] | None = None
    cut: Cut | None = None

    @classmethod
    def plan(cls, documents: Iterable[Splittable], fraction: float, seed: int) -> "Splitter | None":
        """Read as many documents as needed to decide. None: there are no documents.

        Raises:
            UserError: the only document is a single character or token, or a conversation.
        """
        known: list[_Known] = []
        smallest, largest = 1.0, 0.0
        count = length = 0
        for document in documents:
            length += document.length
            if document.continues:
                continue
            draw = _draw(seed, count)
            smallest, largest = min(smallest, draw), max(largest, draw)
            count += 1
            if count <= MAX_WEIGHED:
                known.append(_Known(document.name, length, document.can_be_cut))
            elif smallest < fraction <= largest:
                return cls(fraction=fraction, seed=seed)
            length = 0
        if not known:
            return None
        if len(known) == 1 and (known[0].length < 2 or not known[0].can_be_cut):
            kind = "character or token" if known[0].can_be_cut else "conversation"
            raise UserError(f"a single {kind} cannot be split into training and validation: give more text")
        return _weighed(known, fraction, seed)

    def assign(self, documents: Iterable[D]) -> Iterator[tuple[Split, D]]:
        """Each document, or piece of one, with its split."""
        index = offset = 0
        for piece in documents:
            if self.cut is not None and index == self.cut.index:
                yield from self._assign_cut(piece, self.cut, self.cut.at - offset)
            else:
                yield "validation" if self._is_validation(index) else "train", piece
            offset = offset + piece.length if piece.continues else 0
            index += not piece.continues

    def _is_validation(self, index: int) -> bool:
        return _draw(self.seed, index) < self.fraction if self.validation is None else index in self.validation

    def _assign_cut(self, piece: D, cut: Cut, at: int) -> Iterator[tuple[Split, D]]:
        """The parts of a piece of the document that is cut, `at` characters or tokens after the start of the piece."""
        if at + cut.margin <= 0 or at <= 0:
            yield "validation", piece
        elif piece.length < at:
            yield "train", piece
        else:
            first, rest = piece.cut(at, cut.margin)
            yield "train", first
            if rest is not None:
                yield "validation", rest


class _Known(NamedTuple):
    """What is known of a document."""

    name: str
    length: int
    can_be_cut: bool


def _weighed(documents: list[_Known], fraction: float, seed: int) -> Splitter:
    """The splitter for documents of known lengths."""
    order = sorted(range(len(documents)), key=lambda index: _draw(seed, index))
    sizes = [document.length + 1 for document in documents]  # with the end of text
    target = fraction * sum(sizes)
    gap, chosen, cut = target, set(), None
    for index in order:
        if sizes[index] <= gap:
            chosen.add(index)
            gap -= sizes[index]
    left = [index for index in order if index not in chosen]  # never empty: target is below the sum
    if len(documents) == 1:
        cut = _cut(0, documents[0], round(gap))
    elif gap > target / 10:
        part = max(round(gap), MIN_PART)
        long = (each for each in left if documents[each].can_be_cut and documents[each].length >= part + MIN_PART)
        first = next(long, None)
        nearest = min(left, key=lambda index: abs(sizes[index] - gap))
        is_near = abs(sizes[nearest] - gap) <= target / 4
        if len(left) > 1 and (is_near or (first is None and not chosen)):
            chosen.add(nearest)
        elif first is not None:
            cut = _cut(first, documents[first], part)
    return Splitter(fraction=fraction, seed=seed, validation=frozenset(chosen), cut=cut)


def _cut(index: int, document: _Known, part: int) -> Cut:
    """The cut that leaves `part` of a document for validation, or nearly so: both parts have something."""
    at = min(max(1, document.length - part), document.length - 1)
    return Cut(index=index, name=document.name, at=at, length=document.length)
