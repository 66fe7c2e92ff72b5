"""Bytes that a context holds, part by part."""

import dataclasses


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
