"""Reading and writing files. Writes are atomic: a reader sees the old content or the new one, never half of either."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; when the block succeeds, sync it and rename it to `path`.

    When the block raises, the temporary file is removed and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # some writers create a new file, readable by its owner only
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new directory next to `path`; when the block succeeds, sync its contents and rename it to `path`.

    When the block raises, the new directory is removed and `path` is unchanged. With `replace`, an existing
    `path` stays until the new one is complete and is then swapped for it, by two renames.

    Raises:
        FileExistsError: `path` exists, without `replace`.
    """
    path = path.resolve()
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        for written in (*new.rglob("*"), new):
            sync(written)
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
