"""The key cache of one sequence as it is stored: token ids and latents, nothing else of the past (SPEC 4)."""

import copy
import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from goldfinch.cache.growing_tensor import DEFAULT_BLOCK_SIZE, GrowingTensor
from goldfinch.cache.latents import LatentFormat
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError

IDS = "ids"
MAX_MAGNITUDE = 1e20  # of latents and states; what is computed stays far below


def crc32(tensor: Tensor, value: int = 0) -> int:
    """CRC-32 of a tensor's bytes, continuing from `value`."""
    data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return zlib.crc32(data, value)


def id_dtype(vocab_size: int) -> torch.dtype:
    """The dtype that token ids are stored in: 2 bytes if they fit, else 4."""
    return torch.uint16 if vocab_size <= 1 << 16 else torch.int32


def column_formats(config: ModelConfig, latents: LatentFormat | None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape of a row, dtype) of everything that is stored per token."""
    ids: dict[str, tuple[tuple[int, ...], torch.dtype]] = {IDS: ((), id_dtype(config.vocab_size))}
    return ids | (latents.columns(config.latent_width) if latents else {})


def is_plausible(stored: Tensor) -> bool:
    """Whether numbers are finite and not larger than any state or latent can be; integers always are."""
    return not stored.is_floating_point() or bool(stored.abs().max() <= MAX_MAGNITUDE)  # false for NaN


def bytes_per_token(config: ModelConfig, latents: LatentFormat | None) -> int:
    """Bytes of everything that is stored per token."""
    kinds = column_formats(config, latents).values()
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in kinds)


class KeyCache:
    """Per token an id and, in models with GOLD layers, a latent of R numbers.

    Args:
        config: of the model.
        latents: how they are stored; None in models without GOLD layers, whose cache holds the ids only.
        device: where they are stored.
        block_size: tokens of a block.
    """

    def __init__(
        self,
        config: ModelConfig,
        latents: LatentFormat | None,
        device: torch.device,
        block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> None:
        self.format = latents
        self.block_size = block_size
        self._vocab_size = config.vocab_size
        self.columns = {
            name: GrowingTensor(shape, dtype, device, block_size)
            for name, (shape, dtype) in column_formats(config, latents).items()
        }
        """What is stored, one row per token."""
        self._unverified: dict[int, int] = {}
        self._source = ""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.columns[IDS])

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, with the unused capacity of the last ones."""
        return sum(column.nbytes for column in self.columns.values())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are held; forks hold some of them as well."""
        for column in self.columns.values():
            yield from column.tensors()

    def append(self, ids: Tensor, latents: Tensor | None) -> None:
        """Store tokens at the end: (T,) ids and, if the model has them, (T, R) latents."""
        # The last block is written to, so its checksum will no longer be the expected one.
        self._verify_blocks(len(self) - 1, len(self))
        rows = {IDS: ids}
        if self.format is not None and latents is not None:
            rows |= self.format.encode(latents)
        for name, column in self.columns.items():
            column.append(rows[name])

    def ids(self, start: int, stop: int) -> Tensor:
        """Ids of the tokens start .. stop - 1, (T,) int64."""
        self._verify_blocks(start, stop)
        return self.columns[IDS].rows(start, stop).to(torch.int64)

    def latents(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Latents of the tokens start .. stop - 1, (T, R).

        Raises:
            ValueError: the model has no GOLD layers.
        """
        if self.format is None:
            raise ValueError("a model without GOLD layers has no latents")
        self._verify_blocks(start, stop)
        stored = {name: column.rows(start, stop) for name, column in self.columns.items() if name != IDS}
        return self.format.decode(stored, dtype)

    def spans(self, start: int = 0) -> list[tuple[int, int]]:
        """The tokens from `start` on, cut where blocks end: (first, last + 1) of each piece."""
        size = self.block_size
        borders = [start, *range((start // size + 1) * size, len(self), size), len(self)]
        return [(first, last) for first, last in itertools.pairwise(borders) if first < last]

    def truncate(self, length: int) -> None:
        """Drop all tokens from `length` on."""
        # What remains of a block must be verified before it is written to.
        self._verify_blocks(length - 1, length)
        complete = length // self.block_size
        self._unverified = {block: expected for block, expected in self._unverified.items() if block < complete}
        for column in self.columns.values():
            column.truncate(length)

    def fork(self) -> "KeyCache":
        """A second cache of the same tokens, which shares the blocks."""
        other = copy.copy(self)
        other._unverified = dict(self._unverified)
        other.columns = {name: column.fork() for name, column in self.columns.items()}
        return other

    def checksum(self, block: int) -> int:
        """CRC-32 of all that is stored for the tokens of a block."""
        value = 0
        for column in self.columns.values():
            value = crc32(column.block(block), value)
        return value

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.columns[IDS].num_blocks

    def expect_checksums(self, checksums: Iterable[int], source: str) -> None:
        """Compare the checksum of each block with the expected one when the block is first used.

        Args:
            checksums: of each block.
            source: where the blocks come from, for the message if one is corrupt.
        """
        self._unverified, self._source = dict(enumerate(checksums)), source

    def verify(self) -> None:
        """Compare the checksums of all blocks that have not been used yet.

        Raises:
            UserError: a block is corrupt.
        """
        self._verify_blocks(0, len(self))

    def _verify_blocks(self, start: int, stop: int) -> None:
        size = self.block_size
        for block in range(max(start, 0) // size, -(-stop // size)):
            if block not in self._unverified:
                continue
            if self.checksum(block) != self._unverified[block]:
                raise UserError(
                    f"{self._source} is corrupt: the checksum of tokens {block * size} to "
                    f"{min((block + 1) * size, len(self)) - 1} does not match; read the text again"
                )
            self._check_content(block)
            del self._unverified[block]

    def _check_content(self, block: int) -> None:
        """Raise a UserError if a block has impossible ids or latents, as a crafted file with right checksums may."""
        for name, column in self.columns.items():
            stored = column.block(block)
            if name == IDS:
                ids = stored.to(torch.int64)
                bad = bool(ids.min() < 0) or bool(ids.max() >= self._vocab_size)
                what = f"token ids outside the vocabulary, 0 to {self._vocab_size - 1}"
            else:
                bad, what = not is_plausible(stored), "numbers that no model computes"
            if bad:
                raise UserError(
                    f"{self._source} is corrupt: {name} from token {block * self.block_size} on has {what}; "
                    "read the text again"
                )
