"""Whether a C++ kernel is faster than PyTorch on this machine: measured once, and kept beside the compiled library."""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from goldfinch.cpu.build import compiled
from goldfinch.errors import UserError
from goldfinch.files import atomic_file

_LOGGER = logging.getLogger("goldfinch")
REPEATS = 5
Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A C++ kernel, and what runs in its place where it is slower or cannot be compiled."""

    name: str
    """In tables and messages, with its dtype if it has several."""
    source: Path
    library: str
    """What `compiled` calls the source."""
    prepare: Callable[[], tuple[Work, Work]]
    """Makes inputs of a usual size, milliseconds of work; returns the kernel's work on them, and PyTorch's."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How long one call of a kernel and of its PyTorch form takes: the least of a few, as other programs only add."""

    kernel_seconds: float
    pytorch_seconds: float

    @property
    def is_faster(self) -> bool:
        """Whether the kernel is."""
        return self.kernel_seconds < self.pytorch_seconds


@functools.cache
def is_faster(kernel: Kernel) -> bool:
    """Whether to use a kernel: it is compiled and, with this number of threads, faster than PyTorch."""
    library = compiled(kernel.source, kernel.library)
    if library is None:
        return False
    record, threads = Path(library._name).with_suffix(".json"), str(torch.get_num_threads())
    known = _read(record)
    if threads not in known.get(kernel.name, {}):
        _keep(record, kernel, threads, measure(kernel))
        known = _read(record)
    kept = known.get(kernel.name, {}).get(threads)
    # Where nothing can be kept, the kernel is used: that is right nearly everywhere.
    return kept is None or Measurement(*kept).is_faster


def measure(kernel: Kernel) -> Measurement:
    """Run a kernel and its PyTorch form in turns, which takes some ten milliseconds."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        works = kernel.prepare()
        best = [float("inf")] * len(works)
        for _ in range(REPEATS):
            for number, work in enumerate(works):
                started = time.perf_counter()
                work()
                best[number] = min(best[number], time.perf_counter() - started)
    found = Measurement(*best)
    if not found.is_faster:
        _LOGGER.info("%s: PyTorch is used, which is faster here than the C++ kernel", kernel.name)
    return found


def _read(record: Path) -> dict[str, dict[str, list[float]]]:
    """Kernel -> number of threads -> seconds of the kernel and of PyTorch; empty if there is no such file."""
    try:
        content = json.loads(record.read_text())
        return {
            name: {threads: [float(kernel), float(pytorch)] for threads, (kernel, pytorch) in of_kernel.items()}
            for name, of_kernel in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(record: Path, kernel: Kernel, threads: str, found: Measurement) -> None:
    content = _read(record)
    content.setdefault(kernel.name, {})[threads] = [found.kernel_seconds, found.pytorch_seconds]
    try:
        with atomic_file(record) as path:
            path.write_text(json.dumps(content, indent=2))
    except (OSError, UserError) as error:  # such as a full disk: it is measured again in the next process
        _LOGGER.info("%s cannot be written: %s", record, error)
