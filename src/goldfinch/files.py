"""Reading and writing files. Writes are atomic: a reader sees the old content or the new one, never half of either."""

import contextlib
import dataclasses
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from goldfinch.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileVersion:
    """Which file is at a path, and as of when: replacing or writing it makes another one."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileVersion | None":
        """The present one; None if there is no file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls(device=status.st_dev, inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns)


ANY_VERSION = object()
"""For `atomic_file`: whatever is there is replaced."""


def resolved(path: Path) -> Path:
    """The path without symbolic links.

    Raises:
        UserError: a link leads back to itself.
    """
    try:
        target = path.resolve()
    except (RuntimeError, OSError):  # by Python version
        target = None
    if target is None or target.is_symlink():
        raise UserError(f"{path} is a link that leads back to itself: remove it, or choose another name")
    return target


def output_file(path: Path) -> Path:
    """Where a file is written that is to be `path`: symbolic links are followed.

    Raises:
        UserError: there is something else than a file, such as a folder, a device or a pipe.
    """
    target = resolved(path) if path.is_symlink() else path
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"{path} is {kind}: give the name of a file to write")
    return target


@contextlib.contextmanager
def atomic_file(path: Path, expected: "FileVersion | object | None" = ANY_VERSION) -> Iterator[Path]:
    """Yield a temporary path next to `path`; when the block succeeds, sync it and rename it to `path`.

    When the block raises, the temporary file is removed and `path` is unchanged.

    Args:
        path: see `output_file`.
        expected: the version that may be replaced, None for no file; by default any.

    Raises:
        UserError: `path` is no regular file, or another version is there by now, which stays.
    """
    path = output_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # some writers create a new file, readable by its owner only
        sync(temporary)
        with _lock(path.parent):
            if expected is not ANY_VERSION and FileVersion.of(path) != expected:
                raise UserError(
                    f"{path} was written by someone else in the meantime and stays as it is now: open it again and "
                    "repeat, or choose another name"
                )
            temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep others who take this lock out, while a file is compared and replaced: a moment.

    Where a file system has no locks for folders, there is none; then only writers within this moment are not noticed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new directory next to `path`; when the block succeeds, sync its contents and rename it to `path`.

    When the block raises, the new directory is removed and `path` is unchanged. With `replace`, an existing
    `path` stays until the new one is complete and is then swapped for it, by two renames.

    Raises:
        FileExistsError: `path` exists, without `replace`.
        UserError: it does by the end of the block.
    """
    path = resolved(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as name,
        _lock(Path(name)),
    ):
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        for written in (*new.rglob("*"), new):
            sync(written)
        with _lock(path.parent):
            if path.exists() and not replace:
                raise UserError(f"{path} was written by someone else in the meantime and stays: choose another name")
            swap_directory(new, path, old)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of this directory have left: what nobody holds the lock of."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if fcntl is None or not left.is_dir():
            continue
        with contextlib.suppress(OSError):  # someone writes it, or has removed it just now
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def swap_directory(new: Path, path: Path, old: Path) -> None:
    """Rename `new` to `path`; what was at `path` before becomes `old`. All three are on one file system."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def one_line(error: BaseException) -> str:
    """The message of an error on one line; of an error of the system, only its reason."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
