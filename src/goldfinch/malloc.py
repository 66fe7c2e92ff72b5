"""What the C library does with freed memory: how much it keeps for reuse, and when it returns it to the system."""

import ctypes
import functools

# Numbers of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT = 512 << 20  # bytes at the end of the heap
LARGEST_IN_HEAP = 32 << 20  # bytes of one tensor, the most that glibc takes


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """None where there is another C library."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def tune() -> None:
    """Let the temporaries of one step use the memory of those before them, for the rest of the process.

    By itself glibc returns freed tensors of some megabytes at once, and the system then hands out, and zeroes, the same
    pages again for the next: for operations that do no more than pass over a tensor, that is most of their time.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_MMAP_THRESHOLD, LARGEST_IN_HEAP)
        glibc.mallopt(_TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Return the holes that freed temporaries leave in the heap.

    glibc keeps them for reuse, but a tensor that stays and lands in one splits it, so that the next temporary needs new
    memory: without this, reading a million tokens takes several times the memory of what is kept of them.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)
