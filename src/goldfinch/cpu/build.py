"""Compiling this package's C++ for this machine, on first use; the libraries are cached.

Without a compiler a warning is logged once, and everything runs in PyTorch. Libraries are made for this very processor,
or for what $GOLDFINCH_MARCH tells the compiler, such as x86-64-v3.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from goldfinch.files import sync

_LOGGER = logging.getLogger("goldfinch")
HEADERS = Path(__file__).parents[1]
"""Where `#include` looks: this package."""
COMPILERS = ("c++", "g++", "clang++")
# Contracting a * b + c into one instruction rounds once instead of twice; nothing else is reordered. For some CPUs
# GCC would leave out some loops, and a token in a batch got other last digits than alone: the parameter forbids it.
CONTRACTION = ("-ffp-contract=fast", "--param=avoid-fma-max-bits=0")
FLAGS = ("-std=c++17", "-O3", *CONTRACTION, "-fPIC", "-shared", "-pthread", "-w")
if sys.platform == "darwin":
    FLAGS += ("-undefined", "dynamic_lookup")  # OpenMP's functions, if they are loaded
X86 = ("x86_64", "amd64", "i686")
MARCH_VARIABLE = "GOLDFINCH_MARCH"
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@functools.cache
def compiled(source: Path, name: str) -> ctypes.CDLL | None:
    """The library of one C++ file, compiled if it is not cached; None, and a warning, where that is not possible.

    A cached library is loaded only if nobody else could have written it and its content has the checksum in its name.

    Args:
        source: the file.
        name: what messages call it.
    """
    compiler = find_compiler()
    if compiler is None or os.name != "posix":
        _LOGGER.warning("no C++ compiler found: %s runs in PyTorch, several times slower", name)
        return None
    try:
        stem = f"{name.lower().replace(' ', '-')}-{_fingerprint(compiler, source)}"
        with _private_folder() as folder:
            path = _find(folder, stem) or _build(compiler, source, name, folder, stem)
            return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        _LOGGER.warning("%s runs in PyTorch, several times slower; %s: %s", name, compiler, reason)
        return None


def float_lanes(library: ctypes.CDLL | None) -> int | None:
    """The numbers of a vector of fp32, of which the rows that a library computes must be a multiple."""
    return None if library is None else library.vector_bytes() // 4


def _fingerprint(compiler: str, source: Path) -> str:
    """A hash of the code, the compiler and the processor, whose instruction sets show in the compiler's macros."""
    command = [compiler, *flags(), "-E", "-dM", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, check=True).stdout
    code = [file.read_bytes() for file in (source, *sorted(HEADERS.rglob("*.h")))]
    return hashlib.sha256(b"\0".join([*code, macros, " ".join(flags()).encode()])).hexdigest()[:16]


def flags() -> list[str]:
    """The compiler's options, with the processor to compile for."""
    option = "-march" if platform.machine().lower() in X86 else "-mcpu"
    return [*FLAGS, f"{option}={os.environ.get(MARCH_VARIABLE) or 'native'}"]


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for libraries that only this user can write to: the cache, or a temporary one where that cannot be.

    In a cache that others could write to, nothing is believed: it is made private and emptied.
    """
    folder = cache_folder()
    with contextlib.suppress(OSError):  # such as a home that is read-only
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.access(folder, os.W_OK) or folder.stat().st_uid != os.geteuid():
        _LOGGER.warning("%s is not this user's to write to: C++ is compiled again in each process", folder)
        with tempfile.TemporaryDirectory(prefix="goldfinch-") as temporary:
            yield Path(temporary)
        return
    if folder.stat().st_mode & WRITABLE_BY_OTHERS:
        _LOGGER.warning("other users could write to %s: it is now private, and C++ is compiled again", folder)
        folder.chmod(0o700)
        for library in folder.glob("*.so"):
            library.unlink(missing_ok=True)
    yield folder


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual ones; None if there is none."""
    return os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldfinch"


def _find(folder: Path, stem: str) -> Path | None:
    """The library of this name, if it is a file of this user whose content has the checksum in its name."""
    for path in folder.glob(f"{stem}-*.so"):
        status = path.lstat()
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if is_ours and not status.st_mode & WRITABLE_BY_OTHERS and path.stem == f"{stem}-{_checksum(path)}":
            return path
        _LOGGER.warning("%s is damaged or not ours: compiling it again", path)
        path.unlink(missing_ok=True)
    return None


def _build(compiler: str, source: Path, name: str, folder: Path, stem: str) -> Path:
    _LOGGER.info("compiling %s for this machine, once ...", name)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as temporary:
        library = Path(temporary) / "library.so"
        command = [compiler, *flags(), "-iquote", str(HEADERS), "-o", str(library), str(source)]
        subprocess.run(command, capture_output=True, check=True, text=True)
        library.chmod(0o700)
        sync(library)
        path = folder / f"{stem}-{_checksum(library)}.so"
        library.replace(path)
    return path


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
