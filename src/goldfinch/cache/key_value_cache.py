"""What is rebuilt from the key memory and kept for the next step: time against memory, never another result.

Three levels. Each rebuilds what it does not keep, block by block, with no temporary longer than a block:

- "latents" keeps nothing but, where it fits, the table of x0 W_a for the ids seen so far (SPEC 6, fact 2);
- "shared_keys" keeps kD, D numbers a token, which all GOLD layers start from;
- "keys_values" keeps those of every GOLD layer, 2 D G numbers a token.

What depends on nothing but a token and the one before it is worked out once per distinct pair in a block (fact 1).
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from goldfinch.cache.growing_tensor import GrowingTensor
from goldfinch.cache.key_cache import KeyCache
from goldfinch.layers.norm import rms_normalize
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.ops.attention import KeyValueBlock

CacheLevel = Literal["latents", "shared_keys", "keys_values"]


class KeyValueCache:
    """Keys and values for the GOLD layers of one sequence (a `KeyValueSource`).

    Args:
        model: with GOLD layers.
        memory: what to rebuild from; it may grow and shrink in between.
        budget: bytes to keep at most. When the text outgrows a level's share, the next lower one is used.
    """

    query_positions = None

    def __init__(self, model: Decoder, memory: KeyCache, budget: int) -> None:
        assert model.token_cat is not None
        self._model = model
        self._token_cat = model.token_cat
        self._memory = memory
        self.budget = budget
        weight = model.head.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._table = _EmbeddingKeyTable(model)
        self._shared_keys = self._grow()
        self._keys_values: dict[Gold, tuple[GrowingTensor, GrowingTensor]] = {}
        self._block_inputs: _BlockInputs | None = (
            None  # of the block that the GOLD layers are at; the last layer drops it
        )

    def _grow(self) -> GrowingTensor:
        return GrowingTensor((self._model.config.width,), self._dtype, self._device)

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def level(self) -> CacheLevel:
        """The highest that fits the budget at the present length."""
        for level in ("keys_values", "shared_keys"):
            if self.bytes_at(level, len(self)) <= self.budget:
                return level
        return "latents"

    def bytes_at(self, level: CacheLevel, tokens: int) -> int:
        """What a level keeps of a text of this length; the id table, kept where it fits besides, is not in it."""
        rows = {"latents": 0, "shared_keys": 1, "keys_values": 2 * self._model.config.num_gold_layers}
        room = GrowingTensor.room(tokens)
        return rows[level] * room * self._model.config.width * self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that are kept at present."""
        kept = sum(keys.nbytes + values.nbytes for keys, values in self._keys_values.values())
        return kept + self._shared_keys.nbytes + self._table.nbytes

    def truncate(self, length: int) -> None:
        """Forget what was rebuilt of the tokens from `length` on."""
        self._block_inputs = None
        for kept in (self._shared_keys, *(part for pair in self._keys_values.values() for part in pair)):
            kept.truncate(length)

    def fork(self, memory: KeyCache) -> "KeyValueCache":
        """The same for a fork of the memory; keys and values that were rebuilt so far are shared."""
        other = KeyValueCache(self._model, memory, self.budget)
        other._shared_keys = self._shared_keys.fork()
        other._keys_values = {layer: (k.fork(), v.fork()) for layer, (k, v) in self._keys_values.items()}
        return other

    def keys_values(self, layer: Gold) -> Iterator[KeyValueBlock]:
        """A layer's keys and values, block by block as they are asked for."""
        level = self.level
        if level != "keys_values":
            self._keys_values.clear()
        if level != "shared_keys":
            self._shared_keys = self._grow()
        self._table.limit(self.budget - self.bytes_at(level, len(self)))
        if level == "keys_values":
            yield from self._kept_keys_values(layer)
            return
        if level == "shared_keys":
            for start, stop in self._memory.spans(len(self._shared_keys)):
                distinct, places = _distinct(self._memory.ids(start, stop))
                self._shared_keys.append(self._kd(start, stop, distinct, places))
        for start, stop in self._memory.spans():
            keys, values, rows = self._rebuild(layer, start, stop)
            yield KeyValueBlock(keys[None], values[None], rows)

    def _kept_keys_values(self, layer: Gold) -> Iterator[KeyValueBlock]:
        if layer not in self._keys_values:
            self._keys_values[layer] = self._grow(), self._grow()
        keys, values = self._keys_values[layer]
        for start, stop in self._memory.spans(len(keys)):
            new_keys, new_values, rows = self._rebuild(layer, start, stop)
            keys.append(new_keys)
            values.append(new_values.index_select(0, rows))
        for block in range(keys.blocks()):
            yield KeyValueBlock(keys.block(block)[None], values.block(block)[None])

    def _rebuild(self, layer: Gold, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's keys of some tokens, (S, D); values of their distinct bigrams, (U, D); each token's row of them."""
        if self._block_inputs is None or self._block_inputs.span != (start, stop):
            self._block_inputs = self._expand(start, stop)
        stretch = self._block_inputs
        if layer is self._model.blocks[-1].time_mix:
            self._block_inputs = None
        weights, values = layer.mix(stretch.embeddings, stretch.embeddings_before)
        return layer.keys(stretch.kd[1:], stretch.kd[:-1], weights, stretch.rows), values, stretch.rows

    def _expand(self, start: int, stop: int) -> "_BlockInputs":
        ids = self._memory.ids(max(start - 1, 0), stop)
        distinct, places = _distinct(ids)
        e = rms_normalize(self._model.embed(distinct))
        kd = self._kd(max(start - 1, 0), stop, distinct, places)
        if start == 0:
            # Before the text everything is zero, as if there were one more id.
            e = torch.cat([e, torch.zeros_like(e[:1])])
            kd = torch.cat([torch.zeros_like(kd[:1]), kd])
            places = torch.cat([places.new_full((1,), len(distinct)), places])
        bigrams, rows = _distinct(places[:-1] * len(e) + places[1:])
        return _BlockInputs(
            span=(start, stop),
            rows=rows,
            embeddings=e.index_select(0, bigrams % len(e)),
            embeddings_before=e.index_select(0, bigrams // len(e)),
            kd=kd,
        )

    def _kd(self, start: int, stop: int, distinct: Tensor, places: Tensor) -> Tensor:
        """kD of start .. stop - 1, kept or rebuilt, (S, D); their distinct ids, and the place of each among these."""
        if stop <= len(self._shared_keys):
            return self._shared_keys.rows(start, stop)
        latents = self._memory.latents(start, stop, self._dtype)
        return self._token_cat.keys(self._table.rows(distinct).index_select(0, places), latents)


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) integers -> the different ones among them, and the place of each among these."""
    return ids.unique(return_inverse=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BlockInputs:
    """What all GOLD layers need of some tokens, start .. stop - 1."""

    span: tuple[int, int]
    """start, stop."""
    rows: Tensor
    """(S,): which distinct bigram each token ends."""
    embeddings: Tensor
    """e of the second tokens of the distinct bigrams, (U, D)."""
    embeddings_before: Tensor
    """e of the first ones, (U, D)."""
    kd: Tensor
    """kD, of the token before as well, (1 + S, D)."""


class _EmbeddingKeyTable:
    """x0 W_a of every id that has been asked for: a function of the id alone, worked out once while there is room."""

    def __init__(self, model: Decoder) -> None:
        assert model.token_cat is not None
        self._model = model
        self._token_cat = model.token_cat
        self._limit = 0
        self._clear()

    def _clear(self) -> None:
        config, weight = self._model.config, self._model.head.weight
        self._rows = weight.new_empty(0, config.width)
        self._used = 0
        self._row_of = torch.empty(0, dtype=torch.int32, device=weight.device)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._row_of.nbytes

    def limit(self, nbytes: int) -> None:
        """Keep no more than this many bytes from now on."""
        self._limit = nbytes
        if self.nbytes > nbytes:
            self._clear()

    def rows(self, distinct: Tensor) -> Tensor:
        """(U,) ids, none twice -> (U, D)."""
        return self._rows.index_select(0, self._row_of[distinct]) if self._keep(distinct) else self._compute(distinct)

    def _keep(self, distinct: Tensor) -> bool:
        """Put the rows of ids that are new into the table; False where there is no room for them."""
        if not len(self._row_of):
            vocab_size = self._model.config.vocab_size
            if vocab_size * self._row_of.itemsize > self._limit:
                return False
            self._row_of = self._row_of.new_full((vocab_size,), -1)
        new = distinct[self._row_of[distinct] < 0]
        needed = self._used + len(new)
        if needed > len(self._rows):
            room = min(max(needed, 2 * len(self._rows)), self._model.config.vocab_size)
            row = self._rows.shape[1] * self._rows.itemsize
            if self._row_of.nbytes + needed * row > self._limit:
                return False
            room = min(room, (self._limit - self._row_of.nbytes) // row)
            rows = self._rows.new_empty(room, self._rows.shape[1])
            rows[: self._used] = self._rows[: self._used]
            self._rows = rows
        self._rows[self._used : needed] = self._compute(new)
        self._row_of[new] = torch.arange(self._used, needed, dtype=torch.int32, device=new.device)
        self._used = needed
        return True

    def _compute(self, ids: Tensor) -> Tensor:
        return self._token_cat.embedding_part(self._model.embed(ids))
