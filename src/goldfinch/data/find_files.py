"""From what people name - files, folders, patterns, standard input - to files that hold text."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from goldfinch.data.documents import STANDARD_INPUT, check_text
from goldfinch.errors import UserError


@dataclass(frozen=True)
class FoundFiles:
    """What was found.

    Attributes:
        paths: files with text, and `STANDARD_INPUT` for "-"; in order, each once.
        num_skipped: number of other files that folders and patterns led to: empty, binary, not UTF-8 or not readable.
    """

    paths: list[Path]
    num_skipped: int


def find_text_files(names: Sequence[str]) -> FoundFiles:
    """Find the files that `names` stand for.

    Folders are walked, in the order of names, past hidden files and folders; patterns are those of `glob`, with `**`
    for any folders. What has to be text (other than .jsonl and .parquet, say) is read once to find out.

    Raises:
        UserError: there are no names, a file that is named itself is missing or no text, or a folder or pattern leads
            to no text.
    """
    if not names:
        raise UserError("no files were given: name files, folders, patterns, or - for standard input")
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
            empty_handed = f"{name} leads to no file with text"
            raise UserError(f"{empty_handed}, only to {len(others):,} of other kinds" if others else empty_handed)
        paths |= dict.fromkeys(texts)
        skipped |= set(others)
    return FoundFiles(list(paths), len(skipped))


def _candidates(path: Path, name: str) -> Iterable[Path] | None:
    """The files that a folder or pattern leads to; None where the name is that of one file."""
    if path.is_dir():
        return sorted(_walk(path))
    if path.exists() or not glob.has_magic(name):
        return None
    # Unlike Path.glob, this takes absolute patterns and passes over hidden files.
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
