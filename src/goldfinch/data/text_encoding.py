"""The encoding of text files: UTF-8 where it fits, else a byte order mark, a detected encoding, or the one given."""

import codecs
import re
from pathlib import Path
from typing import BinaryIO

from goldfinch.errors import UserError

UTF8 = "utf-8-sig"
_BLOCK_BYTES = 1 << 20
# As much text as is looked at to detect an encoding.
_SAMPLE_BYTES = 1 << 16
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Without a byte order mark these show as binary, or fit any bytes.
_NOT_DETECTED = ["utf_8", "utf_7", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"]
_CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\x80-\x9f]")  # an escape starts a colour in logs


class NotTextError(ValueError):
    """A file is not text; the message is what it is instead, such as "empty"."""


def check_encoding(name: str) -> None:
    """Raise a UserError if there is no text encoding of this name."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"unknown --encoding {name!r}: give one that Python knows, such as utf-16, latin-1, cp1252, gb18030"
        ) from None


def find_encoding(path: Path, encoding: str = "") -> str:
    """The encoding of a text file, which is read to its end.

    Args:
        path: the file.
        encoding: the only one to try; if empty, UTF-8, then what a byte order mark or the text tells.

    Raises:
        NotTextError: the file is empty, binary, not a file, or in no encoding that can be told.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise NotTextError("not a regular file")
    with path.open("rb") as file:
        start = file.read(_BLOCK_BYTES)
        mark = next((name for bytes_, name in _BYTE_ORDER_MARKS.items() if start.startswith(bytes_)), "")
        first = encoding or mark or UTF8
        wrong = _first_wrong_byte(file, first)
        if wrong is None:
            return first
        reason = f"not valid {_name(first)} (byte {wrong:,})"
        if encoding or mark:
            raise NotTextError(reason)
        detected = _detect(file, wrong)
        if detected is None or _first_wrong_byte(file, detected) is not None:
            raise NotTextError(f"{reason}, and its encoding cannot be detected")
        return detected


def _first_wrong_byte(file: BinaryIO, encoding: str) -> int | None:
    """About where decoding fails; None if it does not.

    Raises:
        NotTextError: the file is empty or binary.
    """
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)()
    is_empty, before, block = True, 0, b"-"
    while block:
        block = file.read(_BLOCK_BYTES)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # NUL bytes and the like say more than where UTF-8 first fails.
            if encoding == UTF8 and b"\0" in block:
                raise NotTextError("binary") from None
            return max(before - held + error.start, 0)
        if "\0" in text:
            raise NotTextError("binary")
        is_empty = is_empty and not text
        before += len(block)
    if is_empty:
        raise NotTextError("empty")
    return None


def _detect(file: BinaryIO, wrong: int) -> str | None:
    """The encoding of text that is not UTF-8 from byte `wrong` on; None if it cannot be told."""
    from charset_normalizer import from_bytes

    file.seek(max(0, wrong - _SAMPLE_BYTES // 2))
    sample = file.read(_SAMPLE_BYTES)
    # Mostly valid characters beyond ASCII: UTF-8 that is damaged or cut off, which other encodings would garble.
    beyond_ascii = re.findall(r"[^\0-\x7f]", sample.decode("utf-8", errors="replace"))
    if len(beyond_ascii) > 2 * beyond_ascii.count("\ufffd") or _is_cut_off(sample):
        return None
    found = from_bytes(_telling_lines(file, wrong), cp_exclusion=_NOT_DETECTED)
    matches = [match for match in found if match.chaos < 0.1]
    if not matches or _CONTROL_CHARACTERS.search(str(matches[0])):
        return None
    best = matches[0]
    for match in matches:
        # Short texts fit several; the one of Western Europe is the most common by far.
        as_likely = match.chaos <= best.chaos and match.coherence >= best.coherence - 0.1
        if as_likely and "cp1252" in match.could_be_from_charset:
            return "cp1252"
    return best.encoding


def _telling_lines(file: BinaryIO, wrong: int) -> bytes:
    """The lines from byte `wrong` on that are not ASCII: the others fit every encoding."""
    start = max(0, wrong - 256)
    file.seek(start)
    text = file.read(_BLOCK_BYTES)
    line = text.rfind(b"\n", 0, wrong - start) + 1
    # Within a long line, the first byte that is not ASCII starts a character.
    text = text[line if line or not start else wrong - start :]
    return b"".join(line for line in text.splitlines(keepends=True) if not line.isascii())[:_SAMPLE_BYTES]


def _is_cut_off(sample: bytes) -> bool:
    """Whether UTF-8 fails at the very end only, inside a character of which two bytes or more are there."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(sample) - error.start > 1
    return True


def _name(encoding: str) -> str:
    return "UTF-8" if encoding == UTF8 else encoding
