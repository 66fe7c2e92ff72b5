"""Checksums of files by block, so that each block of a large file is verified when it is first used."""

from pathlib import Path

import numpy as np
import xxhash

from goldfinch.errors import UserError

# Small: reading one window at random should not read much more than that window from the disk.
BLOCK_BYTES = 1 << 16
CHECKSUM_DTYPE = np.dtype("<u8")


def checksum(content: bytes) -> str:
    """XXH3, 64 bits in hex: finds damage, not forgery."""
    return xxhash.xxh3_64_hexdigest(content)


class BlockChecksums:
    """The checksums of the blocks of a file that is being written."""

    def __init__(self) -> None:
        self._finished: list[int] = []
        self._hash = xxhash.xxh3_64()
        self._room = BLOCK_BYTES

    def update(self, data: bytes) -> None:
        """Add what is written to the file next."""
        view = memoryview(data)
        while view:
            part, view = view[: self._room], view[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if not self._room:
                self._finish_block()

    def finish(self) -> bytes:
        """The checksums of all blocks: little-endian uint64 each."""
        if self._room < BLOCK_BYTES:
            self._finish_block()
        return np.array(self._finished, dtype=CHECKSUM_DTYPE).tobytes()

    def _finish_block(self) -> None:
        self._finished.append(self._hash.intdigest())
        self._hash.reset()
        self._room = BLOCK_BYTES


class VerifiedTokens:
    """The token ids of a file, memory-mapped; each block is verified when it is first used.

    Args:
        path: the file, which has at least one id.
        dtype: of its ids.
        checksums: of its blocks, from `BlockChecksums.finish`.
        vocab_size: ids are below it.
    """

    def __init__(self, path: Path, dtype: np.dtype, checksums: bytes, vocab_size: int) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._ids = np.memmap(path, dtype=dtype, mode="r")
        self._checksums = np.frombuffer(checksums, dtype=CHECKSUM_DTYPE)
        self._verified = bytearray(len(self._checksums))  # 1 for each block that is; searched at C speed
        self._block = BLOCK_BYTES // dtype.itemsize

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids start .. stop - 1, 0 <= start < stop <= len: a view of the file.

        Raises:
            UserError: a block of them is corrupt, or has an id outside the vocabulary.
        """
        first, end = start // self._block, (stop - 1) // self._block + 1
        while (block := self._verified.find(0, first, end)) >= 0:
            self._verify(block)
        return self._ids[start:stop]

    def verify(self) -> None:
        """Verify every block, whether it was used or not.

        Raises:
            UserError: as `read`.
        """
        for block in range(len(self._verified)):
            self._verify(block)

    def _verify(self, block: int) -> None:
        start = block * self._block
        ids = self._ids[start : start + self._block]
        if xxhash.xxh3_64_intdigest(ids.data) != self._checksums[block]:
            first = block * BLOCK_BYTES
            raise UserError(
                f"{self._path} is corrupt: bytes {first:,} to {first + ids.nbytes - 1:,} do not match their checksum; "
                "restore the file, or prepare the data again"
            )
        if (id := int(ids.max())) >= self._vocab_size:
            raise UserError(
                f"{self._path} has the token id {id:,}, but its tokenizer has {self._vocab_size:,} ids; "
                "prepare the data again"
            )
        self._verified[block] = 1
