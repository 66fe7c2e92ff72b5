"""What is expanded from the key cache and kept for the next step: a trade of memory for time, never of the result.

Each level rebuilds what it does not keep, block by block, with no temporary longer than a block:

- "latents" keeps nothing but, if it fits, the table of x0 W_a for the ids seen so far (SPEC 6, fact 2);
- "shared_keys" keeps kD, D numbers per token, from which all GOLD layers start;
- "keys_values" keeps the keys and values of every GOLD layer, 2 D G numbers per token.

Why every level gives the same keys and values:

1. Those of a token are functions of its latent, its id, and the latent and id of the token before it.
2. What depends on the two ids only (values, and the weights that mix keys) is equal for equal bigrams: it is computed
   once per distinct bigram of a block (SPEC 6, fact 1).
3. No function looks at other tokens, so blocks can be computed in any order.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from goldfinch.cache.embedding_key_table import EmbeddingKeyTable
from goldfinch.cache.growing_tensor import GrowingTensor, capacity
from goldfinch.cache.key_cache import KeyCache
from goldfinch.layers.norm import rms_normalize
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.ops.attention import KeyValueBlock

CacheLevel = Literal["latents", "shared_keys", "keys_values"]
"""What a context keeps expanded, from nothing to everything."""


class KeyValueCache:
    """Keys and values for the GOLD layers of one sequence (a `KeyValueSource`).

    Args:
        model: with GOLD layers.
        key_cache: what to expand; it may grow and shrink in between.
        budget: maximum bytes to keep. When the text outgrows a level's budget, the next lower level is used.

    Raises:
        ValueError: the model has no GOLD layers.
    """

    query_positions = None

    def __init__(self, model: Decoder, key_cache: KeyCache, budget: int) -> None:
        if model.token_cat is None:
            raise ValueError("a model without GOLD layers has no keys and values to expand")
        self._model = model
        self._token_cat = model.token_cat
        self._key_cache = key_cache
        self.budget = budget
        self._dtype, self._device = model.dtype, model.device
        self._embedding_keys = EmbeddingKeyTable(model)
        self._shared_keys = self._new_column()
        self._keys_values: dict[Gold, tuple[GrowingTensor, GrowingTensor]] = {}
        self.progress: Callable[[float], None] | None = None
        """Called during the next pass over all tokens with the fraction of it that is done; then dropped."""
        # Of the block that the GOLD layers are working on; the last layer drops it.
        self._block_inputs: _BlockInputs | None = None

    def _new_column(self) -> GrowingTensor:
        width, block_size = self._model.config.width, self._key_cache.block_size
        return GrowingTensor((width,), self._dtype, self._device, block_size)

    def __len__(self) -> int:
        return len(self._key_cache)

    @property
    def block_size(self) -> int:
        """Rows of a block of keys or values."""
        return self._key_cache.block_size

    @property
    def level(self) -> CacheLevel:
        """The highest level that fits the budget at the present length."""
        for level in ("keys_values", "shared_keys"):
            if self.nbytes_at(level, len(self)) <= self.budget:
                return level
        return "latents"

    def nbytes_at(self, level: CacheLevel, num_tokens: int) -> int:
        """Bytes that a level keeps of a text of this length, without the table of embedding keys, which is optional."""
        columns = {"latents": 0, "shared_keys": 1, "keys_values": 2 * self._model.config.num_gold_layers}
        rows = capacity(num_tokens, self._key_cache.block_size)
        return columns[level] * rows * self._model.config.width * self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that are kept at present."""
        kept = sum(keys.nbytes + values.nbytes for keys, values in self._keys_values.values())
        return kept + self._shared_keys.nbytes + self._embedding_keys.nbytes

    def _columns(self) -> list[GrowingTensor]:
        return [self._shared_keys, *(part for pair in self._keys_values.values() for part in pair)]

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are held; forks hold some of them as well."""
        for column in self._columns():
            yield from column.tensors()
        yield from self._embedding_keys.tensors()

    def clear(self) -> None:
        """Drop all that was expanded; it is rebuilt when it is needed."""
        self._block_inputs = None
        self._keys_values.clear()
        self._shared_keys = self._new_column()
        self._embedding_keys = EmbeddingKeyTable(self._model)

    def truncate(self, length: int) -> None:
        """Drop what was expanded of the tokens from `length` on."""
        self._block_inputs = None
        for column in self._columns():
            column.truncate(length)

    def fork(self, key_cache: KeyCache) -> "KeyValueCache":
        """The same for a fork of the key cache; keys and values that were expanded so far are shared."""
        other = KeyValueCache(self._model, key_cache, self.budget)
        other._shared_keys = self._shared_keys.fork()
        other._keys_values = {layer: (k.fork(), v.fork()) for layer, (k, v) in self._keys_values.items()}
        return other

    def keys_values(self, layer: Gold) -> Iterator[KeyValueBlock]:
        """A layer's keys and values, block by block as they are asked for."""
        level = self.level
        if level != "keys_values":
            self._keys_values.clear()
        if level != "shared_keys":
            self._shared_keys = self._new_column()
        self._embedding_keys.set_limit(self.budget - self.nbytes_at(level, len(self)))
        if level == "keys_values":
            yield from self._kept_keys_values(layer)
            return
        if level == "shared_keys":
            for start, stop in self._key_cache.spans(len(self._shared_keys)):
                distinct, index = _distinct(self._key_cache.ids(start, stop))
                self._shared_keys.append(self._get_shared_keys(start, stop, distinct, index))
        for start, stop in self._key_cache.spans():
            keys, values, index = self._expand(layer, start, stop)
            yield KeyValueBlock(layer.split_heads(keys[None]), layer.split_heads(values[None]), index)
            self._report(layer, stop)

    def _kept_keys_values(self, layer: Gold) -> Iterator[KeyValueBlock]:
        if layer not in self._keys_values:
            self._keys_values[layer] = self._new_column(), self._new_column()
        keys, values = self._keys_values[layer]
        for start, stop in self._key_cache.spans(len(keys)):
            new_keys, new_values, index = self._expand(layer, start, stop)
            keys.append(new_keys)
            values.append(new_values.index_select(0, index))
            self._report(layer, stop)
        for block in range(keys.num_blocks):
            yield KeyValueBlock(
                layer.split_heads(keys.block(block)[None]), layer.split_heads(values.block(block)[None])
            )

    def _report(self, layer: Gold, stop: int) -> None:
        """Say how far the pass is: this layer has done the tokens up to `stop`."""
        if self.progress is None:
            return
        layers = [block.time_mix for block in self._model.blocks[self._model.config.first_gold_layer :]]
        done = (layers.index(layer) + stop / len(self)) / len(layers)
        self.progress(done)
        if done >= 1:
            self.progress = None

    @property
    def num_missing(self) -> int | None:
        """How many of the newest tokens have no keys and values yet; None unless those of all others are kept."""
        kept = {len(column) for pair in self._keys_values.values() for column in pair}
        if len(self._keys_values) < self._model.config.num_gold_layers or len(kept) > 1 or self.level != "keys_values":
            return None
        (past,) = kept
        return len(self) - past if past else None

    def reserve_newest(self, count: int) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Make room for the keys and values of the last `count` tokens, which `commit_newest` then counts.

        Returns:
            For each GOLD layer the blocks of its keys, rotated, and of its values, (capacity, D) each.
        """
        return [(keys.reserve(count), values.reserve(count)) for keys, values in self._keys_values.values()]

    def commit_newest(self, count: int) -> None:
        """Keep the keys and values of the last `count` tokens, which have been written to the reserved rows."""
        for column in (part for pair in self._keys_values.values() for part in pair):
            column.commit(count)

    def _expand(self, layer: Gold, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's keys of S tokens, rotated, (S, D); the values of their U distinct bigrams, (U, D); an index, (S,).

        The last says which of these values each token has.
        """
        if self._block_inputs is None or self._block_inputs.span != (start, stop):
            self._block_inputs = self._get_block_inputs(start, stop)
        inputs = self._block_inputs
        if layer is self._model.blocks[-1].time_mix:
            self._block_inputs = None
        weights, values = layer.mix(inputs.embeddings, inputs.embeddings_before)
        keys = layer.keys(inputs.shared_keys[1:], inputs.shared_keys[:-1], weights, inputs.value_index)
        return layer.rotate(keys, start), values, inputs.value_index

    def _get_block_inputs(self, start: int, stop: int) -> "_BlockInputs":
        ids = self._key_cache.ids(max(start - 1, 0), stop)
        distinct, index = _distinct(ids)
        e = rms_normalize(self._model.embed(distinct))
        shared_keys = self._get_shared_keys(max(start - 1, 0), stop, distinct, index)
        if start == 0:
            # Before the text everything is zero, as if there were one more id.
            e = torch.cat([e, torch.zeros_like(e[:1])])
            shared_keys = torch.cat([torch.zeros_like(shared_keys[:1]), shared_keys])
            index = torch.cat([index.new_full((1,), len(distinct)), index])
        bigrams, value_index = _distinct(index[:-1] * len(e) + index[1:])
        return _BlockInputs(
            span=(start, stop),
            value_index=value_index,
            embeddings=e.index_select(0, bigrams % len(e)),
            embeddings_before=e.index_select(0, bigrams // len(e)),
            shared_keys=shared_keys,
        )

    def _get_shared_keys(self, start: int, stop: int, distinct: Tensor, index: Tensor) -> Tensor:
        """kD of the tokens start .. stop - 1, kept or computed, (S, D).

        Args:
            start, stop: the tokens.
            distinct: their distinct ids, (U,).
            index: (S,), which of these each token has.
        """
        if stop <= len(self._shared_keys):
            return self._shared_keys.rows(start, stop)
        latents = self._key_cache.latents(start, stop, self._dtype)
        return self._token_cat.keys(self._embedding_keys.get(distinct).index_select(0, index), latents)


def expand_newest(caches: Sequence[KeyValueCache]) -> None:
    """Compute the keys and values of the newest token of several sequences, which step together, at once.

    Only where nothing else is missing; a cache of another kind does it when a GOLD layer asks.

    Args:
        caches: of the same model.
    """
    ready = [cache for cache in caches if cache.num_missing == 1]
    if len(ready) < 2:
        return
    token_cat = ready[0]._token_cat
    ids, latents = newest_rows(ready, 1)
    x0 = ready[0]._model.embed(ids)
    before, newest = rms_normalize(x0).unbind(1)
    embedding_part = token_cat.embedding_part(x0.flatten(0, 1))
    key_before, key = token_cat.keys(embedding_part, latents.flatten(0, 1)).unflatten(0, (len(ready), 2)).unbind(1)
    for layer in ready[0]._keys_values:
        weights, values = layer.mix(newest, before)
        keys = layer.keys(key, key_before, weights)
        for row, cache in enumerate(ready):
            kept_keys, kept_values = cache._keys_values[layer]
            kept_keys.append(layer.rotate(keys[row : row + 1], len(cache) - 1))
            kept_values.append(values[row : row + 1])


def newest_rows(caches: Sequence[KeyValueCache], count: int) -> tuple[Tensor, Tensor]:
    """What keys and values of the last `count` tokens of several sequences are computed from.

    Args:
        caches: of the same model, each of more than `count` tokens.
        count: T.

    Returns:
        Of the token before these and of these, ids, (B, 1 + T) int64, and latents, (B, 1 + T, R).
    """
    dtype = caches[0]._dtype
    ends = [(cache._key_cache, len(cache) - count - 1, len(cache)) for cache in caches]
    ids = torch.stack([key_cache.ids(start, stop) for key_cache, start, stop in ends])
    return ids, torch.stack([key_cache.latents(start, stop, dtype) for key_cache, start, stop in ends])


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) integers -> the distinct ones, and the index of each among these."""
    return ids.unique(return_inverse=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BlockInputs:
    """What all GOLD layers need of the tokens start .. stop - 1."""

    span: tuple[int, int]
    """start, stop."""
    value_index: Tensor
    """(S,): which distinct bigram each token ends."""
    embeddings: Tensor
    """e of the second tokens of the distinct bigrams, (U, D)."""
    embeddings_before: Tensor
    """e of the first tokens, (U, D)."""
    shared_keys: Tensor
    """kD, with that of the token before, (1 + S, D)."""
