"""A tensor that grows at its end without copying what it holds, and that forks share."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

DEFAULT_BLOCK_SIZE = 4096
"""Rows of a block."""
DEFAULT_GRANULARITY = 64
"""The capacity of the last block is a multiple of this, so that appending row by row seldom moves it."""


@dataclasses.dataclass
class _Block:
    storage: Tensor
    """(capacity, ...), capacity at most the block size."""
    is_shared: bool = False
    """Whether another tensor reads it too; then it is copied before it is written to."""


class GrowingTensor:
    """(n, *shape), in blocks of `block_size` rows, of which the last may be shorter.

    Appending writes to the last block only. A fork shares all blocks; whoever writes to a shared one copies it first.

    Args:
        shape: of a row.
        dtype: of the numbers.
        device: where they are.
        block_size: rows of a block.
        granularity: the capacity of the last block is a multiple of it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        block_size: int = DEFAULT_BLOCK_SIZE,
        granularity: int = DEFAULT_GRANULARITY,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        self.block_size = block_size
        self._granularity = granularity
        self._empty = torch.empty(0, *shape, dtype=dtype, device=device)
        self._blocks: list[_Block] = []
        self._length = 0

    @classmethod
    def from_blocks(cls, blocks: Sequence[Tensor], block_size: int) -> Self:
        """Wrap tensors that are never written to, such as memory-mapped ones; all but the last of `block_size` rows."""
        tensor = cls(tuple(blocks[0].shape[1:]), blocks[0].dtype, blocks[0].device, block_size)
        tensor._blocks = [_Block(block, is_shared=True) for block in blocks]
        tensor._length = sum(map(len, blocks))
        return tensor

    def __len__(self) -> int:
        """Number of rows, n."""
        return self._length

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""
        return self._empty.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, with the unused capacity of the last one."""
        return sum(block.storage.nbytes for block in self._blocks)

    def tensors(self) -> list[Tensor]:
        """The storage of all blocks, some of which forks use as well."""
        return [block.storage for block in self._blocks]

    def append(self, rows: Tensor) -> None:
        """Add (k, *shape) at the end, converted to the dtype of this tensor."""
        done = 0
        for used, count in self._spaces(len(rows)):
            self._writable(used, used + count)[used : used + count] = rows[done : done + count].to(self.dtype)
            done += count
            self._length += count

    def reserve(self, count: int) -> list[Tensor]:
        """Make room for `count` more rows, which `commit` then counts.

        Returns:
            The storage of all blocks, (capacity, *shape), for others to write these rows to.
        """
        length = self._length
        try:
            for used, more in self._spaces(count):
                self._writable(used, used + more)
                self._length += more
        finally:
            self._length = length
        return [block.storage for block in self._blocks]

    def commit(self, count: int) -> None:
        """Count `count` rows that were reserved and have been written."""
        self._length += count

    def _spaces(self, count: int) -> Iterator[tuple[int, int]]:
        """Where the next `count` rows go: how many rows the last block has in use, and how many more go there."""
        while count:
            used = self._length % self.block_size
            more = min(self.block_size - used, count)
            yield used, more
            count -= more

    def _writable(self, used: int, needed: int) -> Tensor:
        """Storage of the last block for `needed` rows, the first `used` of which it holds; a new block if full."""
        if self._length == len(self._blocks) * self.block_size:
            self._blocks.append(_Block(self._empty))
        last = self._blocks[-1]
        if last.is_shared or len(last.storage) < needed:
            storage = self._empty.new_empty(
                capacity(needed, self.block_size, self._granularity), *self._empty.shape[1:]
            )
            storage[:used] = last.storage[:used]
            last = self._blocks[-1] = _Block(storage)
        return last.storage

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def block(self, index: int) -> Tensor:
        """The rows of one block: a view."""
        return self._blocks[index].storage[: self._length - index * self.block_size]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1: a view if they are in one block, else a copy."""
        if start >= stop:
            return self._empty
        first, last = start // self.block_size, (stop - 1) // self.block_size
        parts = []
        for index in range(first, last + 1):
            begin = index * self.block_size
            parts.append(self.block(index)[max(start - begin, 0) : stop - begin])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def truncate(self, length: int) -> None:
        """Drop all rows from `length` on."""
        self._length = min(length, self._length)
        del self._blocks[-(-length // self.block_size) :]

    def fork(self) -> Self:
        """A second tensor with the same rows; the two grow independently."""
        for block in self._blocks:
            block.is_shared = True
        other = type(self)(
            tuple(self._empty.shape[1:]), self.dtype, self._empty.device, self.block_size, self._granularity
        )
        other._blocks, other._length = [_Block(block.storage, is_shared=True) for block in self._blocks], self._length
        return other


def capacity(num_rows: int, block_size: int = DEFAULT_BLOCK_SIZE, granularity: int = DEFAULT_GRANULARITY) -> int:
    """Rows that a tensor of `num_rows` rows has room for."""
    full, rest = divmod(num_rows, block_size)
    return full * block_size + min(-(-rest // granularity) * granularity, block_size)
