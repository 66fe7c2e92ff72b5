"""Tuning where tensors lie in RAM: how much freed memory glibc keeps for reuse, and large pages for large tensors."""

import ctypes
import functools
import os

# Numbers of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
TRIM_BYTES = 512 << 20  # free memory at the top that is kept
HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"  # read by PyTorch when it first allocates a large tensor
MMAP_BYTES = 32 << 20  # larger allocations are mapped separately; the maximum that glibc accepts


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library; None if it is not glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def tune() -> None:
    """Let temporaries reuse freed memory, for the rest of the process.

    By default glibc returns freed tensors of some megabytes to the system, which then zeroes the same pages again for
    the next tensor: for element-wise operations that is most of their time. On Linux, PyTorch also asks for pages of
    2 MiB for tensors above that size, which processors read faster: decoding gained 10 to 30 %.
    """
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_MMAP_THRESHOLD, MMAP_BYTES)
        glibc.mallopt(_TRIM_THRESHOLD, TRIM_BYTES)


def trim() -> None:
    """Return the holes that freed temporaries leave to the system.

    glibc keeps them for reuse, but a long-lived tensor that is allocated in one splits it, and the next temporary needs
    new memory: without this, reading a million tokens takes several times the memory of its context.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)
