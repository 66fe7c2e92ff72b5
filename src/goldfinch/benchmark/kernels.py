"""Every C++ kernel beside its PyTorch form on this machine, and which is used."""

import dataclasses
from collections.abc import Iterator

from goldfinch.cpu.autotune import Kernel, Measurement, is_faster, measure
from goldfinch.cpu.build import compiled, float_lanes
from goldfinch.inference import cpu_decode
from goldfinch.mixers import gold
from goldfinch.ops import attention, wkv6

KERNELS: tuple[Kernel, ...] = (
    *wkv6.KERNELS.values(),
    *attention.KERNELS.values(),
    *gold.KERNELS.values(),
    *cpu_decode.STEPS.values(),
    *cpu_decode.PRODUCTS.values(),
)


@dataclasses.dataclass(frozen=True)
class KernelSpeed:
    """One kernel, measured now."""

    name: str
    measurement: Measurement
    is_used: bool
    """Decided when the kernel was first used on this machine with this number of threads."""


def measure_kernels() -> Iterator[KernelSpeed]:
    """Measure all kernels that are compiled; none without a compiler."""
    for kernel in KERNELS:
        if compiled(kernel.source, kernel.library) is not None:
            yield KernelSpeed(kernel.name, measure(kernel), is_faster(kernel))


def vector_bits() -> int | None:
    """Width of the vectors that kernels are compiled for; None without a compiler."""
    lanes = float_lanes(compiled(KERNELS[0].source, KERNELS[0].library))
    return None if lanes is None else 32 * lanes
