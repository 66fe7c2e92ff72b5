"""Bytes that a context holds, part by part, and what several hold together."""

import dataclasses
from collections.abc import Iterable

from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUsage:
    """Bytes that a context holds, by purpose, counted on its tensors."""

    key_cache: int
    """Ids and latents of all tokens."""
    state: int
    """States of all layers: the same at any length."""
    key_value_cache: int
    """Keys and values that are kept expanded, within the budget."""
    snapshots: int
    """States at earlier positions, to go back to."""
    unquantized_latents: int
    """Latents before quantization to integers, kept until `measure_quantization`."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def nbytes_together(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storage of tensors, each counted once: forks share most of what they hold."""
    storages = {storage.data_ptr(): storage.nbytes() for tensor in tensors if (storage := tensor.untyped_storage())}
    return sum(storages.values())
