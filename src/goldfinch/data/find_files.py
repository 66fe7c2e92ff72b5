"""Finding text files from file names, folders, patterns and - for standard input."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from goldfinch.data.documents import STANDARD_INPUT, check_text
from goldfinch.errors import UserError


@dataclass(frozen=True)
class FoundFiles:
    """The result of `find_text_files`.

    Attributes:
        paths: text files, and `STANDARD_INPUT` for "-"; in order, each once.
        num_skipped: number of files in folders and patterns that were skipped: empty, binary, not UTF-8, unreadable.
    """

    paths: list[Path]
    num_skipped: int


def find_text_files(names: Sequence[str]) -> FoundFiles:
    """Find the text files that `names` refer to.

    Folders are walked in alphabetical order, without hidden files and folders; patterns are those of `glob`, with `**`
    for any folders. Files whose type does not tell (unlike .jsonl and .parquet) are read once to see if they are text.

    Raises:
        UserError: there are no names, a named file is missing or not text, or a folder or pattern has no text files.
    """
    if not names:
        raise UserError("no files given: name files, folders, patterns, or - for standard input")
    paths: dict[Path, None] = {}
    skipped: set[Path] = set()
    for name in names:
        if name == str(STANDARD_INPUT):
            paths[STANDARD_INPUT] = None
            continue
        path = Path(name)
        candidates = _candidates(path, name)
        if candidates is None:
            check_text(path)
            paths[path] = None
            continue
        texts, others = _separate(candidates)
        if not texts:
            raise UserError(
                f"no text files found in {name}" + (f": {len(others):,} files are not text" if others else "")
            )
        paths |= dict.fromkeys(texts)
        skipped |= set(others)
    return FoundFiles(list(paths), len(skipped))


def _candidates(path: Path, name: str) -> Iterable[Path] | None:
    """The files of a folder or pattern; None if the name is that of one file."""
    if path.is_dir():
        return sorted(_walk(path))
    if path.exists() or not glob.has_magic(name):
        return None
    # Unlike Path.glob, this takes absolute patterns and skips hidden files.
    return sorted(match for match in map(Path, glob.glob(name, recursive=True)) if match.is_file())  # noqa: PTH207


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _separate(candidates: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    texts, others = [], []
    for path in candidates:
        try:
            check_text(path)
            texts.append(path)
        except UserError:
            others.append(path)
    return texts, others
