"""The key memory of one sequence as it is stored: blocks of latents and ids, grown without copying the past."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from goldfinch.mixers import Gold
from goldfinch.model import Decoder

BLOCK = 1024  # tokens


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
    """

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self._model = model
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

    def fork(self) -> "BlockedKeyMemory":
        """A second memory of the same tokens. Both share the blocks; the last one is copied by who writes to it."""
        for block in self._blocks[-1:]:
            block.shared = True
        other = BlockedKeyMemory(self._model, self._dtype)
        other._blocks, other._length = list(self._blocks), self._length
        return other

    def keys_values(self, layer: Gold) -> Iterator[tuple[Tensor, Tensor]]:
        """A GOLD layer's keys and values, two of (1, S_i, D) a block, rebuilt as they are asked for."""
        token_cat = self._model.token_cat
        assert token_cat is not None
        keys_before = embeddings_before = None
        for start, block in zip(range(0, self._length, BLOCK), self._blocks, strict=True):
            count = min(BLOCK, self._length - start)
            x0 = self._model.embed(block.ids[None, :count].to(torch.int64))
            stretch = token_cat.expand(x0, block.latents[None, :count])
            yield layer.expand(
                dataclasses.replace(stretch, keys_before=keys_before, embeddings_before=embeddings_before)
            )
            keys_before, embeddings_before = stretch.keys[:, -1], stretch.embeddings[:, -1]

    def _new_block(self) -> _Block:
        device = self._model.head.weight.device
        return _Block(
            ids=torch.zeros(BLOCK, dtype=self._id_dtype, device=device),
            latents=torch.zeros(BLOCK, self._model.config.latent_width, dtype=self._dtype, device=device),
        )
