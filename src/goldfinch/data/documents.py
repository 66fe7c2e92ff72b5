"""Reading documents from files lazily, in pieces of bounded size."""

import codecs
import contextlib
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.text_encoding import UTF8
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint

# Longer documents come in pieces of at most this many characters, which bounds the memory.
MAX_PIECE_CHARACTERS = 1 << 22
# The field or column with the messages of a conversation.
MESSAGES = "messages"
# Stands for standard input among file paths.
STANDARD_INPUT = Path("-")
# Name of a temporary file with what standard input held.
STORED_STANDARD_INPUT = "standard input"


@dataclass(frozen=True)
class Document:
    """A document, or a piece of a long one.

    Attributes:
        text: never empty, free of lone surrogates.
        source: the file it was read from, or "standard input".
        continues: whether the next item continues the same document.
        position: bytes of all files read so far, as stored: for progress.
        line: its line or row, counted from 1, in files with many documents; 0 if the file is the document.
        is_chat: whether it is a conversation, in which the names of special tokens stand for these tokens.
        answers: start and end of the answers in a conversation, in characters, if they were asked for.
    """

    text: str
    source: str
    continues: bool = False
    position: int = 0
    line: int = 0
    is_chat: bool = False
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """Where it comes from: "file", or "file:line"."""
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def length(self) -> int:
        """Number of characters."""
        return len(self.text)

    @property
    def can_be_cut(self) -> bool:
        """Half a conversation is none, and could end inside a special token."""
        return not self.is_chat

    def cut(self, at: int, margin: int) -> tuple["Document", "Document | None"]:
        """Split at the end of the paragraph, line or word nearest to `at`, within `margin`: both parts."""
        end = _boundary(self.text, at, margin)
        rest = replace(self, text=self.text[end:]) if end < self.length else None
        return replace(self, text=self.text[:end], continues=False), rest


def _boundary(text: str, at: int, margin: int) -> int:
    """The end of a paragraph, else of a line, else of a word, nearest to `at` and within `margin`."""
    for end in (r"\n[ \t\r]*\n", r"\n", r" "):
        found = [match.end() for match in re.compile(end).finditer(text, max(0, at - margin - 1), at + margin)]
        if found:
            return min(found, key=lambda position: abs(position - at))
    return at


class _BadDocumentError(ValueError):
    """One document of a file cannot be used; the message is the reason."""


@dataclass(frozen=True)
class _Form:
    """How a file holds its text."""

    text_field: str
    encoding: str
    chat_template: ChatTemplate | None
    find_answers: bool


_Spans = tuple[tuple[int, int], ...]


class _Record(NamedTuple):
    """What a line or row holds: see `Document`."""

    text: str
    is_chat: bool
    answers: _Spans


# What a reader yields: text, continues, position in the file, line; whether it is a conversation, and its answers.
_Pieces = Iterator[tuple[str, bool, int, int, bool, _Spans]]
_Report = Callable[[int, str], None]


def read_documents(
    paths: Sequence[Path],
    text_field: str = "text",
    on_error: Callable[[str], None] | None = None,
    encodings: Mapping[Path, str] | None = None,
    chat_template: ChatTemplate | None = None,
    find_answers: bool = False,
) -> Iterator[Document]:
    """Read the documents of `paths` in order, without holding a file in memory.

    .jsonl, .jsonl.gz and .parquet have a document per line or row, in `text_field`, or, where there is no such field, a
    conversation in `messages`: a list of {"role": ..., "content": ...}. A text file of any other kind, and
    `STANDARD_INPUT`, is one document. Paths are checked immediately, their contents as they are read.

    Args:
        paths: the files.
        text_field: the field (.jsonl) or column (.parquet) that holds the text.
        on_error: called with "file:line: reason" for each document that is skipped: invalid JSON, no such field, not
            a string, empty, not Unicode. None: the first one raises.
        encodings: of the files that are not UTF-8.
        chat_template: how conversations are written; None: they are not read.
        find_answers: whether to fill `Document.answers`.

    Raises:
        UserError: a file is missing, empty, binary, in another encoding or corrupt.
    """
    if not paths:
        raise UserError("no files given: name at least one")
    readers = [_reader(path) for path in paths]
    forms = [_Form(text_field, (encodings or {}).get(path, UTF8), chat_template, find_answers) for path in paths]
    return _read_all(paths, readers, forms, on_error)


def has_many_documents(path: Path) -> bool:
    """Whether a file has a document per line or row, by its name."""
    return path.name.lower().endswith(tuple(_READERS))


def input_bytes(paths: Sequence[Path]) -> int:
    """The total size of the files as stored: about the `position` of the last document."""
    return sum(path.stat().st_size for path in paths)


def _reader(path: Path) -> "_Reader":
    if path == STANDARD_INPUT:
        return _read_text
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the files in it, for example {path}/*.jsonl")
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    return _read_text


def _read_all(
    paths: Sequence[Path],
    readers: Sequence["_Reader"],
    forms: Sequence["_Form"],
    on_error: Callable[[str], None] | None,
) -> Iterator[Document]:
    def report(path: Path, line: int, reason: str) -> None:
        message = f"{path}:{line}: {reason}"
        if on_error is None:
            raise UserError(message)
        on_error(message)

    before = 0
    for path, reader, form in zip(paths, readers, forms, strict=True):
        try:
            for text, continues, position, line, is_chat, answers in reader(path, form, partial(report, path)):
                yield Document(text, source_name(path), continues, before + position, line, is_chat, answers)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot read {source_name(path)}: {error}; check the file or leave it out") from error
        before += 0 if path == STANDARD_INPUT else path.stat().st_size


def source_name(path: Path) -> str:
    """What a file is called in messages."""
    is_standard_input = path == STANDARD_INPUT or path.name == STORED_STANDARD_INPUT
    return STORED_STANDARD_INPUT if is_standard_input else str(path)


def _in_pieces(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Regroup the blocks of one document into pieces that end at line ends, each with whether more follow."""
    held = ""
    for block in blocks:
        held += block
        while len(held) > MAX_PIECE_CHARACTERS:
            end = held.rfind("\n", 0, MAX_PIECE_CHARACTERS) + 1 or MAX_PIECE_CHARACTERS
            yield held[:end], True
            held = held[end:]
    yield held, False


def _pieces(record: _Record) -> Iterator[tuple[str, bool]]:
    text = record.text
    if record.answers:  # in one piece: they are places in it
        return iter([(text, False)])
    return _in_pieces(text[i : i + MAX_PIECE_CHARACTERS] for i in range(0, len(text), MAX_PIECE_CHARACTERS))


def _check(text: object, text_field: str) -> str:
    if not isinstance(text, str):
        raise _BadDocumentError(f"{text_field!r} is not a string but {type(text).__name__}")
    if not text:
        raise _BadDocumentError(f"{text_field!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadDocumentError(f"{text_field!r} has a lone surrogate, which is not valid Unicode text") from None
    return text


def _read_text(path: Path, form: _Form, report: _Report) -> _Pieces:
    with contextlib.nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else path.open("rb") as file:
        for text, continues in _in_pieces(_decoded_blocks(source_name(path), file, form.encoding)):
            if not text:
                raise UserError(f"{source_name(path)} is empty; leave it out")
            yield text, continues, file.tell() if file.seekable() else 0, 0, False, ()


def _decoded_blocks(source: str, file: BinaryIO, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := file.read(MAX_PIECE_CHARACTERS):
            text = decoder.decode(block)
            if "\0" in text:
                raise UserError(
                    f"{source} is not text{hint(Path(source)) or '; give its --encoding if it is, or leave it out'}"
                )
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == UTF8 else encoding
        raise UserError(f"{source} is not {name}; give its --encoding, or leave it out") from error


def _read_json_lines(path: Path, form: _Form, report: _Report) -> _Pieces:
    with path.open("rb") as stored, gzip.open(stored) if path.name.lower().endswith(".gz") else stored as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                record = _read_record(_parse_json(line, form.encoding), form)
            except _BadDocumentError as error:
                report(number, str(error))
                continue
            for piece, continues in _pieces(record):
                yield piece, continues, stored.tell(), number, record.is_chat, record.answers


def _parse_json(line: bytes, encoding: str) -> dict[str, Any]:
    try:
        content = json.loads(line.decode(encoding))
    except UnicodeDecodeError:
        raise _BadDocumentError("not UTF-8" if encoding == UTF8 else f"not {encoding}") from None
    except (ValueError, RecursionError) as error:
        raise _BadDocumentError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _BadDocumentError("not a JSON object")
    return content


def _read_record(record: Mapping[str, Any], form: _Form) -> _Record:
    """The text of a line or row."""
    if form.text_field in record:
        return _Record(_check(record[form.text_field], form.text_field), False, ())
    if form.chat_template is None or MESSAGES not in record:
        raise _BadDocumentError(f"no field {form.text_field!r}")
    messages = record[MESSAGES]
    if not isinstance(messages, list) or not messages:
        raise _BadDocumentError(f"{MESSAGES!r} is not a list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise _BadDocumentError(f"message {number} needs a role and a content, which must be text")
    try:
        text = form.chat_template.render(messages, add_generation_prompt=False)
        answers = tuple(form.chat_template.answer_spans(messages)) if form.find_answers else ()
    except UserError as error:
        raise _BadDocumentError(str(error)) from error
    return _Record(_check(text, MESSAGES), True, answers)


def _read_parquet(path: Path, form: _Form, report: _Report) -> _Pieces:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'goldfinch[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            column = MESSAGES if form.chat_template and form.text_field not in columns else form.text_field
            if column not in columns:
                raise UserError(f"{path} has no column {form.text_field!r} but {', '.join(columns)}; give --text-field")
            size = path.stat().st_size
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0):
                    row += 1
                    try:
                        record = _read_record({column: value.as_py()}, form)
                    except (_BadDocumentError, UnicodeDecodeError) as error:
                        report(row, str(error))
                        continue
                    position = size * row // file.metadata.num_rows
                    for piece, continues in _pieces(record):
                        yield piece, continues, position, row, record.is_chat, record.answers
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error


_Reader = Callable[[Path, _Form, _Report], _Pieces]
_READERS: dict[str, _Reader] = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
}
