"""The key memory of one sequence as it is stored: token ids and latents, and nothing else of the past (SPEC 4)."""

import copy
import itertools
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from goldfinch.cache.growing_tensor import GrowingTensor
from goldfinch.cache.latents import LatentFormat
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError

IDS = "ids"


def crc32(tensor: Tensor, value: int = 0) -> int:
    """CRC-32 of a tensor's bytes, going on from `value`."""
    data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return zlib.crc32(data, value)


def id_dtype(vocab_size: int) -> torch.dtype:
    """What token ids are stored in: 2 bytes where they suffice, else 4."""
    return torch.uint16 if vocab_size <= 1 << 16 else torch.int32


def column_kinds(config: ModelConfig, latents: LatentFormat | None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape of a row, dtype) of everything that is stored per token."""
    ids: dict[str, tuple[tuple[int, ...], torch.dtype]] = {IDS: ((), id_dtype(config.vocab_size))}
    return ids | (latents.columns(config.latent_width) if latents else {})


class KeyCache:
    """Per token an id and, in models with GOLD layers, R numbers.

    Args:
        config: of the model.
        latents: how they are stored; None in models without GOLD layers, whose memory holds the text alone.
        device: where it lies.
    """

    def __init__(self, config: ModelConfig, latents: LatentFormat | None, device: torch.device) -> None:
        self.format = latents
        self.columns = {
            name: GrowingTensor(shape, dtype, device) for name, (shape, dtype) in column_kinds(config, latents).items()
        }
        """What is stored, a row per token."""
        self._expected: dict[int, int] = {}
        self._source = ""

    def __len__(self) -> int:
        """Tokens stored."""
        return len(self.columns[IDS])

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, the room in the last ones included."""
        return sum(column.nbytes for column in self.columns.values())

    def append(self, ids: Tensor, latents: Tensor | None) -> None:
        """Store tokens at the end: (T,) ids and, where the model has them, (T, R) latents."""
        # The last block is written on, so that its checksum will not be what was expected of it.
        self._check(len(self) - 1, len(self))
        rows = {IDS: ids}
        if self.format is not None and latents is not None:
            rows |= self.format.encode(latents)
        for name, column in self.columns.items():
            column.append(rows[name])

    def ids(self, start: int, stop: int) -> Tensor:
        """Ids of the tokens start .. stop - 1, (T,) int64."""
        self._check(start, stop)
        return self.columns[IDS].rows(start, stop).to(torch.int64)

    def latents(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Latents of the tokens start .. stop - 1, (T, R)."""
        assert self.format is not None
        self._check(start, stop)
        stored = {name: column.rows(start, stop) for name, column in self.columns.items() if name != IDS}
        return self.format.decode(stored, dtype)

    def spans(self, start: int = 0) -> list[tuple[int, int]]:
        """The tokens from `start` on, cut where blocks end: (first, last + 1) of each piece."""
        size = GrowingTensor.BLOCK
        borders = [start, *range((start // size + 1) * size, len(self), size), len(self)]
        return [(first, last) for first, last in itertools.pairwise(borders) if first < last]

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        # What is left of a block must be known to be good before it is written on.
        self._check(length - 1, length)
        whole = length // GrowingTensor.BLOCK
        self._expected = {block: expected for block, expected in self._expected.items() if block < whole}
        for column in self.columns.values():
            column.truncate(length)

    def fork(self) -> "KeyCache":
        """A second memory of the same tokens; both share the blocks."""
        other = copy.copy(self)
        other._expected = dict(self._expected)
        other.columns = {name: column.fork() for name, column in self.columns.items()}
        return other

    def checksum(self, block: int) -> int:
        """CRC-32 of all that is stored for the tokens of a block."""
        value = 0
        for column in self.columns.values():
            value = crc32(column.block(block), value)
        return value

    def blocks(self) -> int:
        """How many blocks there are."""
        return self.columns[IDS].blocks()

    def expect(self, checksums: Iterable[int], source: str) -> None:
        """Take every block as untrusted until it is first used, and its checksum found to be the expected one.

        Args:
            checksums: of each block.
            source: where the blocks come from, for the message when one is damaged.
        """
        self._expected, self._source = dict(enumerate(checksums)), source

    def verify(self) -> None:
        """Compare the checksums of all blocks that have not been used yet.

        Raises:
            UserError: a block is damaged.
        """
        self._check(0, len(self))

    def _check(self, start: int, stop: int) -> None:
        size = GrowingTensor.BLOCK
        for block in range(max(start, 0) // size, -(-stop // size)):
            if block not in self._expected:
                continue
            if self.checksum(block) != self._expected[block]:
                raise UserError(
                    f"{self._source} is damaged: the checksum of tokens {block * size} to "
                    f"{min((block + 1) * size, len(self)) - 1} does not match; read the text again"
                )
            del self._expected[block]
