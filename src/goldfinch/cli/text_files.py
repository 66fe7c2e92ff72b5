"""The options of commands that read text files: which files, and in which encoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from goldfinch.data.find_files import FoundFiles

# Files that are named one by one; the rest are counted.
SHOWN_FILES = 5


@dataclass(frozen=True, kw_only=True)
class TextFileOptions:
    """Which files are read, and how."""

    text_field: str = "text"
    """Field (.jsonl) or column (.parquet) that holds the text."""
    include: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Take only files that match this pattern, as in .gitignore, such as "*.py"; may be given several times."""
    exclude: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Leave out files that match this pattern, such as "tests/"; may be given several times."""
    encoding: str = ""
    """Encoding of the text files, such as utf-16, latin-1 or gb18030. If empty: UTF-8, or what is detected and printed
    for files that are not UTF-8."""

    def find(self, names: Sequence[str], console: "Console") -> "FoundFiles":
        """Find the text files that `names` refer to, and print what is skipped, left out or not UTF-8.

        Raises:
            UserError: see `find_text_files`.
        """
        from goldfinch.data.documents import source_name
        from goldfinch.data.find_files import find_text_files

        found = find_text_files(names, include=self.include, exclude=self.exclude, encoding=self.encoding)
        _print_list(console, "skipped", found.skipped)
        _print_list(console, "excluded by .gitignore:", [str(path) for path in found.ignored], ", ")
        if not self.encoding:
            detected = [f"{source_name(path)} as {encoding}" for path, encoding in found.encodings.items()]
            _print_list(console, "not UTF-8, reading", detected, ", ")
        return found


def _print_list(console: "Console", title: str, items: Sequence[str], separator: str = "") -> None:
    """The first items, on one line or a line each, and how many there are more."""
    shown = [*items[:SHOWN_FILES], *([f"{len(items) - SHOWN_FILES:,} more"] if len(items) > SHOWN_FILES else [])]
    if separator and items:
        shown = [separator.join(shown)]
    for each in shown:
        console.print(f"{title} {each}")
