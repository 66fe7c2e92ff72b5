"""C++ of this package: built for this machine on first use, kept for the next time.

Where there is no compiler, that is said once and everything runs in PyTorch.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor

from goldfinch.files import atomic_file

HEADERS = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# Contracting a * b + c into one instruction rounds once instead of twice; nothing else is reordered.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")
if sys.platform == "darwin":
    FLAGS += ("-undefined", "dynamic_lookup")  # OpenMP's entries, where somebody has loaded them
VECTOR_BYTES = 64
"""What rows must be a multiple of."""


@functools.cache
def compiled(source: Path, name: str) -> ctypes.CDLL | None:
    """A library made of one C++ file, built now if it has not been; None, and a line on stderr, where that cannot be.

    Args:
        source: the file.
        name: what to call it before users.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None or os.name != "posix":
        print(f"goldfinch: no C++ compiler is here, so {name} runs in PyTorch, several times slower", file=sys.stderr)
        return None
    try:
        path = _cache_folder() / f"{name.lower().replace(' ', '-')}-{_fingerprint(compiler, source)}.so"
        if not path.exists():
            _build(compiler, source, name, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        print(f"goldfinch: {name} runs in PyTorch, several times slower; {compiler}: {reason}", file=sys.stderr)
        return None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, as C++ takes it; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _fingerprint(compiler: str, source: Path) -> str:
    """Of the code, the compiler and the processor: its macros tell which instructions it would use here."""
    command = [compiler, *FLAGS, "-E", "-dM", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, check=True).stdout
    code = [file.read_bytes() for file in (source, *sorted(HEADERS.glob("*.h")))]
    return hashlib.sha256(b"\0".join([*code, macros, " ".join(FLAGS).encode()])).hexdigest()[:16]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldfinch"


def _build(compiler: str, source: Path, name: str, path: Path) -> None:
    print(f"goldfinch: building {name} for this machine, once ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        with atomic_file(path) as temporary:
            command = [compiler, *FLAGS, "-I", str(HEADERS), "-o", str(temporary), str(source)]
            subprocess.run(command, capture_output=True, check=True, text=True)
    finally:
        print(f" {time.monotonic() - started:.1f} s", file=sys.stderr)
