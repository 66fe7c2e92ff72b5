"""Token pairs: PREFIX.bin and PREFIX.idx, the layout in which RWKV's data sets (minipile) are published.

It is Megatron-LM's indexed data set. All numbers are little-endian:

    PREFIX.bin    the token ids of one sequence after the other, without anything between
    PREFIX.idx    b"MMIDIDX\\0\\0"
                  version        uint64, 1
                  type           uint8, that of the ids: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
                                 (6 and 7 are floating-point numbers, which no token is)
                  sequences      uint64, n
                  marks          uint64, m
                  sizes          int32[n], ids of each sequence
                  pointers       int64[n], where in PREFIX.bin each begins, in bytes
                  documents      int64[m], rising from 0 to n: which sequences begin documents, and n at the end

RWKV's tools write one sequence per document and end each with the end of text.

`prepare` copies a pair into a data directory instead of mapping it where it lies. A validation split by document would
leave holes all over the file, so that mapped tokens would need a second way of reading; ids have to be checked once in
any case; and checksums, `verify` and moving a folder work for all data in one way. The price is a copy of the file.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from goldfinch.errors import UserError
from goldfinch.files import atomic_file

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
ID_DTYPES = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
_HEADER = struct.Struct("<9sQBQQ")
_SIZE, _POINTER = np.dtype("<i4"), np.dtype("<i8")
# Numbers of the index that are looked at together, and most tokens of a document that are read together.
BLOCK = 1 << 20


@dataclass(frozen=True)
class TokenDocument:
    """A document of a pair, or a piece of a long one: what `documents.Document` is for text.

    Attributes:
        ids: (n,) int64; at the end of the document without its end of text.
        source: the .idx file.
        line: its number in the file, counted from 1.
        continues: whether the next item is a further piece of the same document.
        position: bytes of all files that were read so far.
    """

    ids: np.ndarray
    source: str
    line: int
    continues: bool = False
    position: int = 0

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.ids)

    def cut(self, at: int, margin: int) -> tuple["TokenDocument", "TokenDocument | None"]:
        """The first `at` tokens and the rest: where paragraphs end is not to be seen in tokens."""
        rest = replace(self, ids=self.ids[at:]) if at < self.length else None
        return replace(self, ids=self.ids[:at], continues=False), rest


def is_index_file(path: Path) -> bool:
    """Whether the name is that of a pair's index."""
    return path.suffix == ".idx"


class IndexedDataset:
    """A pair on disk, memory-mapped.

    Attributes:
        path: the .idx file.
        size: of both files, in bytes.
        documents: how many there are.
        tokens: of all of them, as they are stored.

    Raises:
        UserError: a file is missing, or the index is not what it should be or does not fit the file of ids.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        self._ids_path = index.with_suffix(".bin")
        index_bytes, ids_bytes = (_size(path) for path in (index, self._ids_path))
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise self._damaged("it does not begin as such an index does")
        _, version, code, sequences, marks = _HEADER.unpack(header)
        if version != VERSION:
            raise self._damaged(f"version {version} is not {VERSION}")
        if code not in ID_DTYPES:
            raise self._damaged(f"type {code} is not one of whole numbers: {', '.join(map(str, ID_DTYPES))}")
        # Python's numbers do not overflow: a lie about lengths is found before anything is made of that size.
        expected = _HEADER.size + sequences * (_SIZE.itemsize + _POINTER.itemsize) + marks * _POINTER.itemsize
        if index_bytes != expected:
            raise self._damaged(
                f"{sequences:,} sequences and {marks:,} marks take {expected:,} bytes, it has {index_bytes:,}"
            )
        if sequences < 1 or marks < 2:
            raise self._damaged("it holds no document")
        self._dtype = ID_DTYPES[code]
        pointers = _HEADER.size + sequences * _SIZE.itemsize
        self._sizes = self._map(_SIZE, _HEADER.size, sequences)
        self._pointers = self._map(_POINTER, pointers, sequences)
        self._marks = self._map(_POINTER, pointers + sequences * _POINTER.itemsize, marks)
        self._check_sequences(ids_bytes)
        self._check_documents()
        self.size = index_bytes + ids_bytes
        self.documents = marks - 1
        self.tokens = ids_bytes // self._dtype.itemsize

    def read(self, vocab_size: int, end_of_text: int, before: int = 0) -> Iterator[TokenDocument]:
        """The documents in order, long ones in pieces.

        Args:
            vocab_size: ids must be below it.
            end_of_text: is taken from the end of each document where it stands there.
            before: bytes of the files read before this one: for `TokenDocument.position`.

        Raises:
            UserError: an id is out of range.
        """
        ids = np.memmap(self._ids_path, dtype=self._dtype, mode="r") if self.tokens else np.empty(0, self._dtype)
        for number, (start, end) in enumerate(self._spans(), start=1):
            for at in range(start, max(end, start + 1), BLOCK):
                piece = ids[at : min(at + BLOCK, end)].astype(np.int64)
                if piece.size and not (piece.min() >= 0 and piece.max() < vocab_size):
                    bad = int(piece[(piece < 0) | (piece >= vocab_size)][0])
                    raise UserError(
                        f"{self.path}: document {number:,} has the token {bad}, but the tokenizer has "
                        f"{vocab_size:,} ids: name the --tokenizer that made it"
                    )
                last = at + BLOCK >= end
                if last and piece.size and piece[-1] == end_of_text:
                    piece = piece[:-1]
                position = before + end * self._dtype.itemsize
                yield TokenDocument(piece, str(self.path), number, not last, position)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Where each document begins and ends in the ids."""
        start, sequences = 0, len(self._pointers)
        for block in range(1, len(self._marks), BLOCK):
            marks = np.asarray(self._marks[block : block + BLOCK])
            # A document ends where the sequence after it begins; after the last sequence, with the file.
            begins = self._pointers[np.minimum(marks, sequences - 1)] // self._dtype.itemsize
            for end in np.where(marks < sequences, begins, self.tokens).tolist():
                yield start, end
                start = end

    def _map(self, dtype: np.dtype, place: int, count: int) -> np.ndarray:
        return np.memmap(self.path, dtype=dtype, mode="r", offset=place, shape=(count,))

    def _check_sequences(self, ids_bytes: int) -> None:
        """Sequences lie one after the other and fill the file of ids."""
        end = 0
        for block in range(0, len(self._sizes), BLOCK):
            sizes = self._sizes[block : block + BLOCK].astype(np.int64) * self._dtype.itemsize
            if sizes.min() < 0:
                raise self._damaged("a sequence has a negative size")
            ends = end + np.cumsum(sizes)
            starts = ends - sizes
            if not np.array_equal(self._pointers[block : block + BLOCK], starts):
                raise self._damaged("its sequences do not lie one after the other")
            end = int(ends[-1])
            if end > ids_bytes:
                break
        if end != ids_bytes:
            raise self._damaged(f"its sequences take {end:,} bytes or more, {self._ids_path.name} has {ids_bytes:,}")

    def _check_documents(self) -> None:
        if self._marks[0] != 0 or self._marks[-1] != len(self._sizes):
            raise self._damaged("its marks of documents do not reach from the first sequence to the last")
        for block in range(0, len(self._marks) - 1, BLOCK):
            if (np.diff(self._marks[block : block + BLOCK + 1]) < 0).any():
                raise self._damaged("its marks of documents do not rise")

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is no whole index of token pairs: {reason}; get the pair anew")


def write_indexed(index: Path, documents: Iterable[Iterable[np.ndarray]], vocab_size: int) -> None:
    """Write a pair, all or nothing, with memory for one piece and all sizes.

    Args:
        index: the .idx file; the ids go beside it.
        documents: each as pieces of its ids. Each becomes one sequence.
        vocab_size: ids are below it: uint16 where that holds them, else int32.

    Raises:
        UserError: a document is too long for the format.
    """
    dtype = ID_DTYPES[code := 8 if vocab_size <= 1 << 16 else 4]
    sizes = array("q")
    # The inner file gets its name first: there never is an index without its ids.
    with atomic_file(index) as new_index, atomic_file(index.with_suffix(".bin")) as new_ids:
        with new_ids.open("wb") as file:
            for pieces in documents:
                sizes.append(sum(file.write(ids.astype(dtype).tobytes()) for ids in pieces) // dtype.itemsize)
        if max(sizes, default=0) > np.iinfo(_SIZE).max:
            raise UserError(f"a document of {max(sizes):,} tokens is longer than {index.name} can say")
        counts = np.array(sizes, dtype=_POINTER)
        with new_index.open("wb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, code, len(counts), len(counts) + 1))
            file.write(counts.astype(_SIZE).tobytes())
            file.write(((np.cumsum(counts) - counts) * dtype.itemsize).astype(_POINTER).tobytes())
            file.write(np.arange(len(counts) + 1, dtype=_POINTER).tobytes())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a pair is NAME.idx with NAME.bin beside it") from error
