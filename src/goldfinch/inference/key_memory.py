"""The key memory of one sequence as it is stored: blocks of latents and ids, grown without copying the past.

What GOLD layers read is rebuilt from it block by block. The keys and values of whole blocks never change again, so they
are kept for the next step as long as a budget lasts; the rest is rebuilt at every step. Both give the same numbers.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from goldfinch.mixers import ExpandedMemory, Gold
from goldfinch.model import Decoder

BLOCK = 1024  # tokens
DEFAULT_BUDGET = 1 << 30  # bytes


@dataclasses.dataclass(kw_only=True)
class _Block:
    """Room for `BLOCK` tokens."""

    ids: Tensor
    """(BLOCK,) uint16, or int32 for vocabularies that need it."""
    latents: Tensor
    """(BLOCK, R)."""
    shared: bool = False
    """Whether another memory holds this block too; then it is copied before it is written to."""


class BlockedKeyMemory:
    """What GOLD layers need of the past, R numbers and an id per token, and the keys and values rebuilt from it.

    Args:
        model: with GOLD layers.
        dtype: the latents are stored in.
        budget: bytes of keys and values to keep at most.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype, budget: int) -> None:
        assert model.token_cat is not None
        self._model = model
        self._token_cat = model.token_cat
        self._budget = budget
        self._kept: dict[tuple[Gold, int], tuple[Tensor, Tensor]] = {}
        self._dtype = dtype
        self._id_dtype = torch.uint16 if model.config.vocab_size <= 1 << 16 else torch.int32
        self._blocks: list[_Block] = []
        self._length = 0

    def __len__(self) -> int:
        """Tokens stored."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, the room in the last one included."""
        return sum(block.ids.nbytes + block.latents.nbytes for block in self._blocks)

    @property
    def nbytes_expanded(self) -> int:
        """Bytes of the keys and values that are kept."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._kept.values())

    def append(self, ids: Tensor, latents: Tensor) -> None:
        """Store tokens at the end: (T,) ids and (T, R) latents."""
        done = 0
        while done < len(ids):
            used = self._length % BLOCK
            if used == 0:
                self._blocks.append(self._new_block())
            elif self._blocks[-1].shared:
                last = self._blocks[-1]
                self._blocks[-1] = _Block(ids=last.ids.clone(), latents=last.latents.clone())
            count = min(BLOCK - used, len(ids) - done)
            block = self._blocks[-1]
            block.ids[used : used + count] = ids[done : done + count].to(self._id_dtype)
            block.latents[used : used + count] = latents[done : done + count].to(self._dtype)
            done += count
            self._length += count

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        self._length = length
        del self._blocks[-(-length // BLOCK) :]
        self._kept = {place: kept for place, kept in self._kept.items() if place[1] < length // BLOCK}

    def fork(self) -> "BlockedKeyMemory":
        """A second memory of the same tokens. Both share the blocks; the last one is copied by who writes to it."""
        for block in self._blocks[-1:]:
            block.shared = True
        other = BlockedKeyMemory(self._model, self._dtype, self._budget)
        other._blocks, other._length, other._kept = list(self._blocks), self._length, dict(self._kept)
        return other

    def keys_values(self, layer: Gold) -> Iterator[tuple[Tensor, Tensor]]:
        """A GOLD layer's keys and values, two of (1, S_i, D) a block, as they are asked for."""
        for index in range(len(self._blocks)):
            kept = self._kept.get((layer, index))
            if kept is None:
                kept = layer.expand(self._expand(index))
                size = sum(tensor.nbytes for tensor in kept)
                if (index + 1) * BLOCK <= self._length and self.nbytes_expanded + size <= self._budget:
                    self._kept[layer, index] = kept
            yield kept

    def _expand(self, index: int) -> ExpandedMemory:
        """One block at full width, with the token before it."""
        count = min(BLOCK, self._length - index * BLOCK)
        block = self._blocks[index]
        ids, latents = block.ids[:count], block.latents[:count]
        if index == 0:
            return self._token_cat.expand(self._embed(ids), latents[None])
        before = self._blocks[index - 1]
        stretch = self._token_cat.expand(
            self._embed(torch.cat([before.ids[-1:], ids])), torch.cat([before.latents[-1:], latents])[None]
        )
        return ExpandedMemory(
            keys=stretch.keys[:, 1:],
            embeddings=stretch.embeddings[:, 1:],
            keys_before=stretch.keys[:, 0],
            embeddings_before=stretch.embeddings[:, 0],
        )

    def _embed(self, ids: Tensor) -> Tensor:
        return self._model.embed(ids[None].to(torch.int64))

    def _new_block(self) -> _Block:
        device = self._model.head.weight.device
        return _Block(
            ids=torch.zeros(BLOCK, dtype=self._id_dtype, device=device),
            latents=torch.zeros(BLOCK, self._model.config.latent_width, dtype=self._dtype, device=device),
        )
