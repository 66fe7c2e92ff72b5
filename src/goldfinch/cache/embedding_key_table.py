"""The part of shared keys that a token id alone decides, x0 W_a, for the ids of a text (SPEC 6, fact 2)."""

import torch
from torch import Tensor

from goldfinch.model import Decoder


class EmbeddingKeyTable:
    """x0 W_a of every id that has been asked for: a function of the id alone, computed once while there is memory."""

    def __init__(self, model: Decoder) -> None:
        if model.token_cat is None:
            raise ValueError("a model without GOLD layers has no embedding keys")
        self._model = model
        self._token_cat = model.token_cat
        self._limit = 0
        self._clear()

    def _clear(self) -> None:
        width = self._model.config.width
        self._keys = torch.empty(0, width, dtype=self._model.dtype, device=self._model.device)
        self._num_used = 0
        self._index = torch.empty(0, dtype=torch.int32, device=self._model.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of the index."""
        return self._keys.nbytes + self._index.nbytes

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The keys and the index."""
        return self._keys, self._index

    def set_limit(self, nbytes: int) -> None:
        """Keep at most this many bytes from now on."""
        self._limit = nbytes
        if self.nbytes > nbytes:
            self._clear()

    def get(self, distinct: Tensor) -> Tensor:
        """(U,) distinct ids -> (U, D)."""
        return self._keys.index_select(0, self._index[distinct]) if self._add(distinct) else self._compute(distinct)

    def _add(self, distinct: Tensor) -> bool:
        """Add the ids that are new; False if there is no memory for them."""
        vocab_size = self._model.config.vocab_size
        if not len(self._index):
            if vocab_size * self._index.itemsize > self._limit:
                return False
            self._index = self._index.new_full((vocab_size,), -1)
        new = distinct[self._index[distinct] < 0]
        needed = self._num_used + len(new)
        if needed > len(self._keys):
            num_rows = min(max(needed, 2 * len(self._keys)), vocab_size)
            row_nbytes = self._keys.shape[1] * self._keys.itemsize
            if self._index.nbytes + needed * row_nbytes > self._limit:
                return False
            num_rows = min(num_rows, (self._limit - self._index.nbytes) // row_nbytes)
            keys = self._keys.new_empty(num_rows, self._keys.shape[1])
            keys[: self._num_used] = self._keys[: self._num_used]
            self._keys = keys
        self._keys[self._num_used : needed] = self._compute(new)
        self._index[new] = torch.arange(self._num_used, needed, dtype=torch.int32, device=new.device)
        self._num_used = needed
        return True

    def _compute(self, ids: Tensor) -> Tensor:
        return self._token_cat.embedding_part(self._model.embed(ids))
