"""Megatron-LM's indexed dataset, PREFIX.bin and PREFIX.idx, in which RWKV's datasets (minipile) are published too.

All numbers are little-endian:

    PREFIX.bin    the token ids of all sequences, one after the other
    PREFIX.idx    b"MMIDIDX\\0\\0"
                  version        uint64, 1
                  type           uint8, of the ids: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
                                 (6 and 7 are floating-point types, which ids cannot have)
                  sequences      uint64, n
                  boundaries     uint64, m
                  sizes          int32[n], number of ids of each sequence
                  pointers       int64[n], where each starts in PREFIX.bin, in bytes
                  documents      int64[m], increasing from 0 to n: which sequences start documents, and n at the end

RWKV's tools write one sequence per document and end each with the end of text.

`prepare` copies such a dataset into a data directory instead of mapping it in place:

1. A validation split by document leaves holes all over the file, so mapped tokens would need a second way of reading.
2. Ids have to be checked once in any case.
3. Checksums, `verify` and moving a folder work the same for all data.
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
BLOCK = 1 << 20  # numbers of the index that are checked together, and tokens that are read together


@dataclass(frozen=True)
class TokenDocument:
    """A document of an indexed dataset, or a piece of a long one: what `documents.Document` is for text.

    Attributes:
        ids: (n,) int64, without the end of text.
        source: the .idx file.
        line: its number in the file, counted from 1.
        continues: whether the next item continues the same document.
        position: bytes of all files that were read so far.
    """

    ids: np.ndarray
    source: str
    line: int
    continues: bool = False
    position: int = 0

    @property
    def name(self) -> str:
        """Where it comes from: "file:number"."""
        return f"{self.source}:{self.line}"

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def can_be_cut(self) -> bool:
        """Always."""
        return True

    def cut(self, at: int, margin: int) -> tuple["TokenDocument", "TokenDocument | None"]:
        """The first `at` tokens and the rest; tokens do not show where paragraphs end."""
        rest = replace(self, ids=self.ids[at:]) if at < self.length else None
        return replace(self, ids=self.ids[:at], continues=False), rest


def is_index_file(path: Path) -> bool:
    """Whether the path is the index of an indexed dataset."""
    return path.suffix == ".idx"


def is_indexed(path: Path) -> bool:
    """Whether the path is a file of an indexed dataset: the index, or a .bin file next to its index."""
    return is_index_file(path) or (path.suffix == ".bin" and path.with_suffix(".idx").exists())


class IndexedDataset:
    """An indexed dataset on disk, memory-mapped.

    Attributes:
        path: the .idx file.
        size: bytes of both files.
        documents: number of documents.
        tokens: number of stored tokens.

    Raises:
        UserError: a file is missing, or the index is corrupt or does not match the .bin file.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        self._ids_path = index.with_suffix(".bin")
        index_bytes, ids_bytes = (_size(path) for path in (index, self._ids_path))
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise self._corrupt("not an index file")
        _, version, code, sequences, num_boundaries = _HEADER.unpack(header)
        if version != VERSION:
            raise self._corrupt(f"version {version} is not {VERSION}")
        if code not in ID_DTYPES:
            raise self._corrupt(f"type {code} is not an integer type: {', '.join(map(str, ID_DTYPES))}")
        # Python integers do not overflow: false lengths are found before anything of that size is allocated.
        expected = _HEADER.size + sequences * (_SIZE.itemsize + _POINTER.itemsize) + num_boundaries * _POINTER.itemsize
        if index_bytes != expected:
            raise self._corrupt(
                f"{sequences:,} sequences and {num_boundaries:,} boundaries take {expected:,} bytes, "
                f"it has {index_bytes:,}"
            )
        if sequences < 1 or num_boundaries < 2:
            raise self._corrupt("it has no documents")
        self._dtype = ID_DTYPES[code]
        pointers = _HEADER.size + sequences * _SIZE.itemsize
        self._sizes = self._map(_SIZE, _HEADER.size, sequences)
        self._pointers = self._map(_POINTER, pointers, sequences)
        self._boundaries = self._map(_POINTER, pointers + sequences * _POINTER.itemsize, num_boundaries)
        self._check_sequences(ids_bytes)
        self._check_documents()
        self.size = index_bytes + ids_bytes
        self.documents = num_boundaries - 1
        self.tokens = ids_bytes // self._dtype.itemsize

    def read(self, vocab_size: int, end_of_text: int, before: int = 0) -> Iterator[TokenDocument]:
        """The documents in order, long ones in pieces.

        Args:
            vocab_size: ids must be below it.
            end_of_text: is removed from the end of each document that has it.
            before: bytes of the files read before this one, for `TokenDocument.position`.

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
                        f"{vocab_size:,} ids: give the --tokenizer that it was made with"
                    )
                last = at + BLOCK >= end
                if last and piece.size and piece[-1] == end_of_text:
                    piece = piece[:-1]
                position = before + end * self._dtype.itemsize
                yield TokenDocument(piece, str(self.path), number, not last, position)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Start and end of each document in the ids."""
        start, sequences = 0, len(self._pointers)
        for block in range(1, len(self._boundaries), BLOCK):
            boundaries = np.asarray(self._boundaries[block : block + BLOCK])
            # A document ends where the next sequence starts, the last one at the end of the file.
            starts = self._pointers[np.minimum(boundaries, sequences - 1)] // self._dtype.itemsize
            for end in np.where(boundaries < sequences, starts, self.tokens).tolist():
                yield start, end
                start = end

    def _map(self, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=(count,))

    def _check_sequences(self, ids_bytes: int) -> None:
        """Check that sequences are contiguous and fill the .bin file."""
        end = 0
        for block in range(0, len(self._sizes), BLOCK):
            sizes = self._sizes[block : block + BLOCK].astype(np.int64) * self._dtype.itemsize
            if sizes.min() < 0:
                raise self._corrupt("a sequence has a negative size")
            ends = end + np.cumsum(sizes)
            starts = ends - sizes
            if not np.array_equal(self._pointers[block : block + BLOCK], starts):
                raise self._corrupt("its sequences are not contiguous")
            end = int(ends[-1])
            if end > ids_bytes:
                break
        if end != ids_bytes:
            raise self._corrupt(f"its sequences take at least {end:,} bytes, {self._ids_path.name} has {ids_bytes:,}")

    def _check_documents(self) -> None:
        if self._boundaries[0] != 0 or self._boundaries[-1] != len(self._sizes):
            raise self._corrupt("its document boundaries do not span all sequences")
        for block in range(0, len(self._boundaries) - 1, BLOCK):
            if (np.diff(self._boundaries[block : block + BLOCK + 1]) < 0).any():
                raise self._corrupt("its document boundaries are not increasing")

    def _corrupt(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not a valid index of an indexed dataset: {reason}; download it again")


def write_indexed(index: Path, documents: Iterable[Iterable[np.ndarray]], vocab_size: int) -> None:
    """Write an indexed dataset atomically, holding one piece and all sizes in memory.

    Args:
        index: the .idx file; the .bin file goes next to it.
        documents: each as pieces of its ids; each becomes one sequence.
        vocab_size: ids are below it; they are stored as uint16 if they fit, else as int32.

    Raises:
        UserError: a document is too long for the format.
    """
    dtype = ID_DTYPES[code := 8 if vocab_size <= 1 << 16 else 4]
    sizes = array("q")
    # The inner file is renamed first, so that there is never an index without its ids.
    with atomic_file(index) as new_index, atomic_file(index.with_suffix(".bin")) as new_ids:
        with new_ids.open("wb") as file:
            for pieces in documents:
                sizes.append(sum(file.write(ids.astype(dtype).tobytes()) for ids in pieces) // dtype.itemsize)
        if max(sizes, default=0) > np.iinfo(_SIZE).max:
            raise UserError(f"a document of {max(sizes):,} tokens is too long for {index.name}")
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
        raise UserError(f"{path}: {error.strerror}; an indexed dataset is NAME.idx with NAME.bin next to it") from error
