"""Text of files, models and names on its way to a terminal, which obeys escape sequences, or to a file or pipe."""

import io
import re
import sys
from typing import IO

# C0 but tab and newline, DEL, C1, and the characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(text: str, stream: IO[str] | None = None) -> str:
    r"""`text` as `stream` may have it: in a terminal, control characters are written out, such as \x1b.

    Args:
        text: from a file, a model or a name.
        stream: where it will be printed; None for standard output.
    """
    stream = sys.stdout if stream is None else stream
    return visible(text) if stream.isatty() else text


def visible(text: str) -> str:
    r"""Control characters written out, so that a terminal does not obey them.

    >>> visible("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return _CONTROL.sub(lambda found: _escape(found[0]), text.replace("\r\n", "\n"))


def shown_json(text: str) -> str:
    r"""As `shown` for standard output, but the text stays JSON: \u001b, and lines end as they do."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if sys.stdout.isatty() else text


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def print_text(text: str, end: str = "\n") -> None:
    """Print text of a file or a model at once, as `shown`."""
    print(shown(text), end=end, flush=True)


def replace_what_cannot_be_encoded() -> None:
    """Let standard output write ? for characters that its encoding lacks, where Python would raise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
