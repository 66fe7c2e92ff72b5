"""How latents are stored: as floating-point numbers, or as small integers with a scale for every few of them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.settings import did_you_mean

LATENTS, SCALES = "latents", "scales"


class LatentFormat(Protocol):
    """One way of storing latents, (T, R), as the rows of one or two tensors."""

    exact: bool
    """Whether it stands for the numbers themselves, but for rounding to a floating-point type."""

    @property
    def name(self) -> str:
        """As users ask for it."""

    def columns(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape of a row, dtype) of the tensors that hold latents of R = `width`."""

    def encode(self, latents: Tensor) -> dict[str, Tensor]:
        """(T, R) -> T rows of each column."""

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The inverse: (T, R) in `dtype`."""


@dataclasses.dataclass(frozen=True)
class FloatLatents:
    """Floating-point numbers; of the model's own type they are not rounded at all."""

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
        """Rounded to the type."""
        return {LATENTS: latents.to(self.dtype)}

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """As they are."""
        return rows[LATENTS].to(dtype)


@dataclasses.dataclass(frozen=True)
class IntegerLatents:
    """Integers of 8 or 4 bits, times a scale (fp16) that up to 32 neighbouring numbers of a token share.

    A token's bytes depend on nothing but that token, so that appending and going back leave all others alone. 4-bit
    integers lie two in a byte, the first in the low half, 8 added.
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
        """The nearest integers."""
        groups = latents.float().unflatten(-1, (-1, _group(latents.shape[-1])))
        largest = 2 ** (self.bits - 1) - 1
        scales = groups.abs().amax(-1, keepdim=True) / largest
        scales = scales.clamp(max=torch.finfo(torch.float16).max).half()
        # A scale that rounds to zero belongs to numbers that are nothing beside an embedding of size one.
        integers = torch.where(scales > 0, groups / scales.float(), 0).round().clamp(-largest, largest)
        integers = integers.flatten(-2).to(torch.int8)
        if self.bits == 4:
            nibbles = (integers + 8).view(torch.uint8)
            integers = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        return {LATENTS: integers, SCALES: scales.squeeze(-1)}

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Integers times scales."""
        integers, scales = rows[LATENTS], rows[SCALES]
        if self.bits == 4:
            integers = torch.stack([integers & 15, integers >> 4], dim=-1).flatten(-2).view(torch.int8) - 8
        groups = integers.unflatten(-1, (scales.shape[-1], -1)).float() * scales[..., None].float()
        return groups.flatten(-2).to(dtype)


def _group(width: int) -> int:
    """How many numbers share a scale: the largest divisor of R up to 32."""
    return max(size for size in range(1, 33) if width % size == 0)


_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FORMATS: dict[str, LatentFormat] = {
    **{str(dtype).removeprefix("torch."): FloatLatents(dtype) for dtype in _FLOATS},
    "int8": IntegerLatents(8),
    "int4": IntegerLatents(4),
}


def latent_format(name: str, width: int) -> LatentFormat:
    """The format of this name, for latents of R = `width`.

    Raises:
        UserError: there is none, or it does not fit.
    """
    if name not in FORMATS:
        raise UserError(f"unknown latent format {name!r}; {did_you_mean(name, list(FORMATS))}")
    if name == "int4" and width % 2:
        raise UserError(f"int4 stores two numbers a byte, but this model's latents have {width}: use int8")
    return FORMATS[name]
