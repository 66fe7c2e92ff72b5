"""Compiling this package's C++ for this machine, on first use; the libraries are cached.

Without a compiler a warning is logged once, and everything runs in PyTorch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from goldfinch.files import atomic_file

_LOGGER = logging.getLogger("goldfinch")
HEADERS = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# Contracting a * b + c into one instruction rounds once instead of twice; nothing else is reordered.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")
if sys.platform == "darwin":
    FLAGS += ("-undefined", "dynamic_lookup")  # OpenMP's functions, if they are loaded
VECTOR_BYTES = 64
"""Rows must be a multiple of this."""


@functools.cache
def compiled(source: Path, name: str) -> ctypes.CDLL | None:
    """The library of one C++ file, compiled if it is not cached; None, and a warning, where that is not possible.

    Args:
        source: the file.
        name: what messages call it.
    """
    compiler = find_compiler()
    if compiler is None or os.name != "posix":
        _LOGGER.warning("no C++ compiler found: %s runs in PyTorch, several times slower", name)
        return None
    try:
        path = cache_folder() / f"{name.lower().replace(' ', '-')}-{_fingerprint(compiler, source)}.so"
        if not path.exists():
            _build(compiler, source, name, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        _LOGGER.warning("%s runs in PyTorch, several times slower; %s: %s", name, compiler, reason)
        return None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's data for C++; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _fingerprint(compiler: str, source: Path) -> str:
    """A hash of the code, the compiler and the processor, whose instruction sets show in the compiler's macros."""
    command = [compiler, *FLAGS, "-E", "-dM", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, check=True).stdout
    code = [file.read_bytes() for file in (source, *sorted(HEADERS.glob("*.h")))]
    return hashlib.sha256(b"\0".join([*code, macros, " ".join(FLAGS).encode()])).hexdigest()[:16]


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual ones; None if there is none."""
    return os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldfinch"


def _build(compiler: str, source: Path, name: str, path: Path) -> None:
    _LOGGER.info("compiling %s for this machine, once ...", name)
    with atomic_file(path) as temporary:
        command = [compiler, *FLAGS, "-I", str(HEADERS), "-o", str(temporary), str(source)]
        subprocess.run(command, capture_output=True, check=True, text=True)
