"""Reading and writing files. Writes are atomic: a reader sees the old content or the new one, never half of either."""

import contextlib
import dataclasses
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from goldfinch.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]  # mypy takes the name for a module only


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


T = TypeVar("T")


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


Replaced = FileVersion | Literal["any"] | None
"""Which file may be replaced by a new one: this version, any, or none at all."""


def read_unchanged(path: Path, read: Callable[[], T]) -> T:
    """What `read` makes of a file, which is read again if it has been replaced in the meantime.

    Raises:
        UserError: `read` refuses the file as it is.
    """
    while True:
        version = FileVersion.of(path)
        try:
            result = read()
        except UserError:
            if FileVersion.of(path) == version:
                raise
        else:
            if FileVersion.of(path) == version:
                return result


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
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise UserError(f"{path} is {kind}: give the name of a file to write")
    return target


@contextlib.contextmanager
def atomic_file(path: Path, replaced: Replaced = "any") -> Iterator[Path]:
    """Yield a temporary path near `path`; when the block succeeds, sync it and rename it to `path`.

    When the block raises, the temporary file is removed and `path` is unchanged.

    Args:
        path: see `output_file`.
        replaced: which file at `path` may be replaced.

    Raises:
        UserError: `path` is not a regular file, or another version is there by now, which stays.
    """
    path = output_file(path)
    with _temporary_folder(path) as folder:
        temporary = folder / path.name
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(mode)  # some writers create a new file, readable by its owner only
            sync(temporary)
        except OSError as error:
            if error.filename == str(temporary):
                error.filename = str(path)  # the name that the user knows
            raise
        with _lock(path.parent):
            if replaced != "any" and FileVersion.of(path) != replaced:
                raise UserError(
                    f"another process has written {path} in the meantime, and it was not replaced: open it again and "
                    "repeat, or choose another name"
                )
            temporary.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A folder next to `path`, on its file system, for what is not complete yet; locked, so that others let it be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                temporary = tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            except OSError as error:
                error.filename = str(path)  # the name that the user knows
                raise
            folder = Path(stack.enter_context(temporary))
            # Before it was locked, another writer may have taken it for abandoned.
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(_lock(folder))
                if folder.exists():
                    break
        yield folder


def remove_abandoned(path: Path) -> None:
    """Remove what writers of this file or directory have left that were killed: what nobody holds the lock of."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        if fcntl is None or not left.is_dir():
            continue
        with contextlib.suppress(OSError):  # its writer is at work, or has removed it just now
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Where the file system has none for folders, nothing is held."""
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
    with _temporary_folder(path) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        for written in (*new.rglob("*"), new):
            sync(written)
        with _lock(path.parent):
            if path.exists() and not replace:
                raise UserError(
                    f"another process has written {path} in the meantime, and it was not replaced: choose another name"
                )
            swap_directory(new, path, old)


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
