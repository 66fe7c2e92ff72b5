"""Giving freed memory back to the system while a long text is read."""

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """That of glibc; None where there is another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_freed_memory() -> None:
    """Return the holes that freed temporaries leave in the heap.

    glibc keeps them for reuse, but a tensor that stays and lands in one splits it, so that the next temporary needs new
    memory: without this, reading a million tokens takes several times the memory of what is kept of them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
