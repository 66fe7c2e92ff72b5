"""A tensor that grows at its end without copying the past, and that forks share."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


@dataclasses.dataclass
class _Block:
    room: Tensor
    """(up to BLOCK rows, ...)."""
    shared: bool = False
    """Whether somebody else reads it too; then it is copied before it is written to."""


class GrowingTensor:
    """(n, *shape), in blocks of BLOCK rows of which the last may be shorter.

    Appending writes to the last block alone. A fork shares all blocks; whoever writes to a shared one copies it first.
    """

    BLOCK = 4096
    """Rows of a block."""
    ROOM = 64
    """The last block has room for a multiple of this, so that appending row by row seldom moves it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._empty = torch.empty(0, *shape, dtype=dtype, device=device)
        self._blocks: list[_Block] = []
        self._length = 0

    @classmethod
    def of(cls, blocks: Sequence[Tensor]) -> Self:
        """Made of tensors that are never written to, memory-mapped ones for example; all but the last of BLOCK rows."""
        tensor = cls(tuple(blocks[0].shape[1:]), blocks[0].dtype, blocks[0].device)
        tensor._blocks = [_Block(block, shared=True) for block in blocks]
        tensor._length = sum(map(len, blocks))
        return tensor

    def __len__(self) -> int:
        """Rows, n."""
        return self._length

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""
        return self._empty.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, the room in the last one included."""
        return sum(block.room.nbytes for block in self._blocks)

    @classmethod
    def room(cls, rows: int) -> int:
        """Rows for which there is room when `rows` are there."""
        whole, rest = divmod(rows, cls.BLOCK)
        return whole * cls.BLOCK + min(-(-rest // cls.ROOM) * cls.ROOM, cls.BLOCK)

    def append(self, rows: Tensor) -> None:
        """Add (k, *shape) at the end, converted to the dtype of this tensor."""
        done = 0
        while done < len(rows):
            used = self._length % self.BLOCK
            count = min(self.BLOCK - used, len(rows) - done)
            self._writable(used, used + count)[used : used + count] = rows[done : done + count].to(self.dtype)
            done += count
            self._length += count

    def _writable(self, used: int, needed: int) -> Tensor:
        """The last block's room, for `needed` rows, of which `used` are there; a new block where none are."""
        if not used:
            self._blocks.append(_Block(self._empty))
        last = self._blocks[-1]
        if last.shared or len(last.room) < needed:
            room = self._empty.new_empty(self.room(needed), *self._empty.shape[1:])
            room[:used] = last.room[:used]
            last = self._blocks[-1] = _Block(room)
        return last.room

    def blocks(self) -> int:
        """How many there are."""
        return len(self._blocks)

    def block(self, index: int) -> Tensor:
        """The rows of one block: a view."""
        return self._blocks[index].room[: self._length - index * self.BLOCK]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1: a view where they lie in one block, else a copy."""
        if start >= stop:
            return self._empty
        first, last = start // self.BLOCK, (stop - 1) // self.BLOCK
        parts = []
        for index in range(first, last + 1):
            begin = index * self.BLOCK
            parts.append(self.block(index)[max(start - begin, 0) : stop - begin])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self._length = min(length, self._length)
        del self._blocks[-(-length // self.BLOCK) :]

    def fork(self) -> Self:
        """A second tensor with the same rows; the two grow independently."""
        for block in self._blocks:
            block.shared = True
        other = type(self)(tuple(self._empty.shape[1:]), self.dtype, self._empty.device)
        other._blocks, other._length = list(self._blocks), self._length
        return other
