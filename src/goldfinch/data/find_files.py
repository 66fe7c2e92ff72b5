"""Finding text files from file names, folders, patterns and - for standard input."""

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from goldfinch.data.documents import STANDARD_INPUT, STORED_STANDARD_INPUT, has_many_documents, source_name
from goldfinch.data.text_encoding import UTF8, NotTextError, check_encoding, find_encoding
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint


@dataclass(frozen=True)
class FoundFiles:
    """The result of `find_text_files`.

    Attributes:
        paths: text files, and `STANDARD_INPUT` for "-"; in order, each once.
        encodings: of those that are not UTF-8.
        skipped: "file: reason" for what was found in folders and by patterns, but cannot be read.
        ignored: files and folders that a .gitignore excludes.
    """

    paths: list[Path] = field(default_factory=list)
    encodings: dict[Path, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def find_text_files(
    names: Sequence[str], *, include: Sequence[str] = (), exclude: Sequence[str] = (), encoding: str = ""
) -> FoundFiles:
    """Find the text files that `names` refer to.

    Folders are walked in alphabetical order, without hidden files and folders, `__pycache__`, links to folders, and
    what .gitignore excludes; patterns are those of `glob`, with `**` for any folders. Files whose type does not tell
    (unlike .jsonl and .parquet) are read once to see if they are text, and in which encoding.

    Args:
        names: files, folders, patterns, or "-".
        include: patterns as in .gitignore; if there are any, only files that match one are taken.
        exclude: files that match one of these patterns are left out.
        encoding: of all text files; if empty, each is UTF-8 or its encoding is detected.

    Raises:
        UserError: there are no names, a named file is missing or not text, or a folder or pattern has no text files.
    """
    if not names:
        raise UserError("no files given: name files, folders, patterns, or - for standard input")
    if encoding:
        check_encoding(encoding)
    wanted = _Filter(include, exclude)
    found = FoundFiles()
    paths: dict[Path, None] = {}
    skipped: dict[str, None] = {}
    ignored: dict[Path, None] = {}
    for name in names:
        if name == str(STANDARD_INPUT):
            paths[STANDARD_INPUT] = None
            if encoding:
                found.encodings[STANDARD_INPUT] = encoding
            continue
        path = Path(name)
        if path.is_dir() or (glob.has_magic(name) and not path.exists()):
            search = _Search(found, wanted, encoding)
            search.run(path, name)
            paths |= dict.fromkeys(search.texts)
            skipped |= dict.fromkeys(search.skipped)
            ignored |= dict.fromkeys(search.ignored)
        elif wanted(path, Path(path.anchor)):
            _set_encoding(found, path, require_text(path, encoding))
            paths[path] = None
    if not paths:
        raise UserError("no files left: all of those named are excluded by --include or --exclude")
    found.paths.extend(paths)
    found.skipped.extend(skipped)
    found.ignored.extend(ignored)
    return found


@contextlib.contextmanager
def stored_standard_input(names: Sequence[str]) -> Iterator[list[str]]:
    """The names with a temporary file in place of "-", for readers that read more than once."""
    if str(STANDARD_INPUT) not in names:
        yield list(names)
        return
    with tempfile.TemporaryDirectory(prefix="goldfinch-") as folder:
        path = Path(folder) / STORED_STANDARD_INPUT
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [str(path) if name == str(STANDARD_INPUT) else name for name in names]


def require_text(path: Path, encoding: str = "") -> str:
    """`find_encoding` of a file that must be text; of files with many documents, which are not read, the one given.

    Raises:
        UserError: it is missing, cannot be read or is not text.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if has_many_documents(path):
        return encoding or UTF8
    try:
        return find_encoding(path, encoding)
    except NotTextError as error:
        remedy = "leave it out" if str(error) == "empty" else "give its --encoding if it is text, or leave it out"
        raise UserError(f"{source_name(path)} is {error}{hint(path) or f'; {remedy}'}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _set_encoding(found: FoundFiles, path: Path, encoding: str) -> None:
    if encoding != UTF8:
        found.encodings[path] = encoding


class _Filter:
    """Which files are wanted, by --include and --exclude."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = GitIgnoreSpec.from_lines(include) if include else None
        self._exclude = GitIgnoreSpec.from_lines(exclude)

    def __call__(self, path: Path, base: Path) -> bool:
        name = path.relative_to(base).as_posix()
        return (self._include is None or self._include.match_file(name)) and not self._exclude.match_file(name)


class _Search:
    """The text files of one folder or pattern, and what is skipped there."""

    def __init__(self, found: FoundFiles, wanted: _Filter, encoding: str) -> None:
        self._found = found
        self._wanted = wanted
        self._encoding = encoding
        self.texts: list[Path] = []
        self.skipped: list[str] = []
        self.ignored: list[Path] = []
        self._num_unwanted = 0

    def run(self, path: Path, name: str) -> None:
        """Fill the lists.

        Raises:
            UserError: there are no text files.
        """
        files = dict.fromkeys(self._walk(path), path) if path.is_dir() else self._matches(name)
        for file in sorted(files):
            self._add(file, files[file])
        if not self.texts:
            skipped = [f"{len(self.skipped):,} skipped, such as {self.skipped[0]}"] if self.skipped else []
            unwanted = [f"{self._num_unwanted:,} excluded by --include or --exclude"] if self._num_unwanted else []
            ignored = [f"{len(self.ignored):,} excluded by .gitignore"] if self.ignored else []
            reasons = "; ".join(skipped + unwanted + ignored)
            raise UserError(f"no text files found in {name}" + (f": {reasons}" if reasons else ""))

    def _matches(self, pattern: str) -> dict[Path, Path]:
        """The files that match a pattern, and those in folders that do; each with the folder it was found from."""
        files: dict[Path, Path] = {}
        # Unlike Path.glob, this takes absolute patterns and skips hidden files.
        for path in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 (see above)
            if "__pycache__" not in path.parts:
                files |= dict.fromkeys(self._walk(path) if path.is_dir() else [path], Path(path.anchor))
        return files

    def _add(self, path: Path, base: Path) -> None:
        if not self._wanted(path, base):
            self._num_unwanted += 1
            return
        try:
            encoding = self._encoding if has_many_documents(path) else find_encoding(path, self._encoding)
            _set_encoding(self._found, path, encoding or UTF8)
            self.texts.append(path)
        except NotTextError as error:
            self.skipped.append(f"{path}: {error}")
        except OSError as error:
            self.skipped.append(f"{path}: {error.strerror}")

    def _walk(self, folder: Path) -> Iterator[Path]:
        """All files below a folder that are not hidden or ignored."""
        ignore = _GitIgnore(folder)
        for name, folders, files in os.walk(folder, onerror=self._unreadable):
            parent = Path(name)
            ignore.enter(parent)
            kept = []
            for each in sorted(folders):
                path = parent / each
                if each.startswith(".") or each == "__pycache__":
                    continue
                if ignore.excludes(path, is_folder=True):
                    self.ignored.append(path)
                elif path.is_symlink():
                    self.skipped.append(f"{path}: a link to a folder, which is not followed")
                else:
                    kept.append(each)
            folders[:] = kept
            for each in files:
                if each.startswith("."):
                    continue
                if ignore.excludes(parent / each):
                    self.ignored.append(parent / each)
                else:
                    yield parent / each

    def _unreadable(self, error: OSError) -> None:
        self.skipped.append(f"{error.filename}: {error.strerror}")


class _GitIgnore:
    """What the .gitignore files of a folder, of those below it and of the repository around it exclude."""

    def __init__(self, folder: Path) -> None:
        self._specs: dict[Path, GitIgnoreSpec] = {}
        root = folder.resolve()
        above = [root, *root.parents]
        repository = next((number for number, each in enumerate(above) if (each / ".git").exists()), 0)
        for each in above[1 : repository + 1]:
            self.enter(each)
        if self.excludes(folder, is_folder=True):  # but it was named
            self._specs.clear()

    def enter(self, folder: Path) -> None:
        """Read the .gitignore of a folder, if it has one."""
        path = folder / ".gitignore"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            self._specs[folder.resolve()] = GitIgnoreSpec.from_lines(lines)

    def excludes(self, path: Path, *, is_folder: bool = False) -> bool:
        """Whether it is excluded; the .gitignore nearest to it decides."""
        if not self._specs:
            return False
        absolute = path.parent.resolve() / path.name
        for folder in absolute.parents:
            if folder in self._specs:
                name = absolute.relative_to(folder).as_posix() + "/" * is_folder
                if (decision := self._specs[folder].check_file(name).include) is not None:
                    return decision
        return False
