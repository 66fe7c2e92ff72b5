"""How latents are stored: as floating-point numbers, or as small integers with a scale for each group of them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.settings import did_you_mean

LATENTS, SCALES = "latents", "scales"


class LatentFormat(Protocol):
    """A way to store latents, (T, R), as the rows of one or two tensors."""

    exact: bool
    """Whether it stores the numbers themselves, apart from rounding to a floating-point dtype."""

    @property
    def name(self) -> str:
        """The name that users give."""

    def columns(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape of a row, dtype) of the tensors that hold latents of R = `width`."""

    def encode(self, latents: Tensor) -> dict[str, Tensor]:
        """(T, R) -> T rows of each column."""

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The inverse: (T, R) in `dtype`."""


@dataclasses.dataclass(frozen=True)
class FloatLatents:
    """Floating-point numbers; in the model's own dtype nothing is rounded."""

    dtype: torch.dtype
    exact = True

    @property
    def name(self) -> str:
        """Such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def columns(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """One column."""
        return {LATENTS: ((width,), self.dtype)}

    def encode(self, latents: Tensor) -> dict[str, Tensor]:
        """Round to the dtype."""
        return {LATENTS: latents.to(self.dtype)}

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Convert to `dtype`."""
        return rows[LATENTS].to(dtype)


@dataclasses.dataclass(frozen=True)
class IntegerLatents:
    """Integers of 8 or 4 bits, times a scale (fp16) that up to 32 neighbouring numbers of a token share.

    A token's bytes depend on that token only, so appending and truncating change no others. Two 4-bit integers share a
    byte, the first in the low half, each with 8 added.
    """

    bits: Literal[8, 4]
    exact = False

    @property
    def name(self) -> str:
        """int8 or int4."""
        return f"int{self.bits}"

    def columns(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Integers and scales."""
        integers = ((width,), torch.int8) if self.bits == 8 else ((width // 2,), torch.uint8)
        return {LATENTS: integers, SCALES: ((width // _group(width),), torch.float16)}

    def encode(self, latents: Tensor) -> dict[str, Tensor]:
        """Round to the nearest integers."""
        groups = latents.float().unflatten(-1, (-1, _group(latents.shape[-1])))
        max_integer = 2 ** (self.bits - 1) - 1
        scales = groups.abs().amax(-1, keepdim=True) / max_integer
        scales = scales.clamp(max=torch.finfo(torch.float16).max).half()
        # A scale that rounds to zero belongs to numbers that are negligible next to an embedding of size one.
        integers = torch.where(scales > 0, groups / scales.float(), 0).round().clamp(-max_integer, max_integer)
        integers = integers.flatten(-2).to(torch.int8)
        if self.bits == 4:
            nibbles = (integers + 8).view(torch.uint8)
            integers = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        return {LATENTS: integers, SCALES: scales.squeeze(-1)}

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Multiply integers by scales."""
        integers, scales = rows[LATENTS], rows[SCALES]
        if self.bits == 4:
            integers = torch.stack([integers & 15, integers >> 4], dim=-1).flatten(-2).view(torch.int8) - 8
        groups = integers.unflatten(-1, (scales.shape[-1], -1)).float() * scales[..., None].float()
        return groups.flatten(-2).to(dtype)


def _group(width: int) -> int:
    """Number of values that share a scale: the largest divisor of R up to 32."""
    return max(size for size in range(1, 33) if width % size == 0)


_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FORMATS: dict[str, LatentFormat] = {
    **{str(dtype).removeprefix("torch."): FloatLatents(dtype) for dtype in _FLOATS},
    "int8": IntegerLatents(8),
    "int4": IntegerLatents(4),
}


def latent_format(name: str, width: int) -> LatentFormat:
    """Look up a format by name, for latents of R = `width`.

    Raises:
        UserError: an unknown format, or R is odd for int4.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"unknown latent format {name!r}; {did_you_mean(str(name), list(FORMATS))}")
    if name == "int4" and width % 2:
        raise UserError(f"int4 stores two numbers per byte, but this model's latents have {width}: use int8")
    return FORMATS[name]
