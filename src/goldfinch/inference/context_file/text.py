"""What a context file holds, without the weights that wrote it: its bytes, its text, and where a string occurs."""

import bisect
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open

from goldfinch.checkpoint.model_folder import TOKENIZER, read_tokenizer
from goldfinch.data.tokenizers import StreamDecoder, Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.context_file.format import Description, Document, model_folder, open_memory
from goldfinch.settings import did_you_mean

LONGEST_CHARACTER = 4  # bytes, in UTF-8


def stored_bytes(path: Path) -> dict[str, int]:
    """Bytes of each part of a context file: "ids", "latents", "scales", "checksums", and "state.<position>" of each."""
    sizes: Counter[str] = Counter()
    with safe_open(path, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 (not a dictionary)
            part, _, rest = name.partition(".")
            if part == "state":
                part = f"{part}.{rest.partition('.')[0]}"
            sizes[part] += stored.get_tensor(name).nbytes  # memory-mapped: the numbers are not read
    return dict(sizes)


def require_model_folder(path: Path, description: Description, given: Path | None = None) -> Path:
    """The folder of the model that wrote a context file: the given one, or the one that the file remembers.

    Raises:
        UserError: the file remembers none, or it is no longer there.
    """
    folder = given or model_folder(path, description)
    if folder is None:
        raise UserError(f"{path} does not say where its model is: give the model's folder with -m")
    if not folder.is_dir():
        raise UserError(f"there is no model in {folder}" + ("" if given else f", where {path} expects it: use -m"))
    return folder


def require_stored_tokenizer(path: Path, description: Description, given: Path | None = None) -> Tokenizer:
    """The tokenizer that a context file was written with, from its model's folder or the given one.

    Raises:
        UserError: the file was written from ids, the folder is not there, or holds no or another tokenizer.
    """
    if not description.tokenizer:
        raise UserError(f"{path} was written from token ids, without a tokenizer: it holds no text")
    folder = require_model_folder(path, description, given)
    tokenizer = read_tokenizer(folder, description.model)
    if tokenizer is None:
        raise UserError(f"{folder} holds no {TOKENIZER}: give the folder of the model that wrote {path} with -m")
    if tokenizer.hash != description.tokenizer:
        raise UserError(
            f"{path} was written with another tokenizer than that of {folder}: give the folder of its own model with -m"
        )
    return tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One place where a string occurs."""

    position: int
    """Of the token in which it begins."""
    document: str | None
    """Name of the document it begins in, if it is in one."""
    before: str
    """The text just before it."""
    text: str
    """The string, as it is written there."""
    after: str
    """The text just after it."""


class StoredText:
    """The text of a context file, decoded where it is asked for: from the ids, the tokenizer, and nothing else.

    Args:
        path: the file.
        description: of it.
        tokenizer: that it was written with.
    """

    def __init__(self, path: Path, description: Description, tokenizer: Tokenizer) -> None:
        self._path = path
        self._memory = open_memory(path, description)
        self._tokenizer = tokenizer
        self._documents = sorted(description.documents, key=lambda document: document.start)

    def __len__(self) -> int:
        """Tokens."""
        return len(self._memory)

    def document(self, name: str) -> Document:
        """The document of this name.

        Raises:
            UserError: there is none, or there are several.
        """
        found = [document for document in self._documents if document.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            starts = ", ".join(f"{document.start}" for document in found)
            raise UserError(
                f"{self._path} holds {len(found)} documents {name!r}, from tokens {starts} on: give --start and --stop"
            )
        names = list(dict.fromkeys(document.name for document in self._documents))
        hint = did_you_mean(name, names) if len(names) <= 10 else "`goldfinch cache info --all` lists them"
        raise UserError(f"{self._path} holds no document {name!r}; {hint if names else 'none of its text has a name'}")

    def read(self, start: int, stop: int) -> Iterator[str]:
        """The text of the tokens start .. stop - 1, piece by piece; a character cut in two becomes U+FFFD.

        Raises:
            UserError: these tokens are damaged.
        """
        decoder = StreamDecoder(self._tokenizer)
        for first, last in self._memory.spans(start):
            if first >= stop:
                break
            yield "".join(map(decoder.push, self._ids(first, min(last, stop))))
        yield decoder.flush()

    def find(self, text: str, *, ignore_case: bool = False, surroundings: int = 0) -> Iterator[Hit]:
        """All places where `text` occurs, in order, overlaps left out; across the borders of tokens and documents.

        Args:
            text: what to look for, as it is written.
            ignore_case: whether capital and small letters are the same.
            surroundings: most characters to show on either side.

        Raises:
            UserError: there is nothing to look for, or the file is damaged.
        """
        pattern = _pattern(text, ignore_case)
        tokens = [self._tokenizer.token_bytes(id) for id in self._ids(0, len(self))]
        ends = np.cumsum([len(token) for token in tokens])
        content = b"".join(tokens)
        reach = LONGEST_CHARACTER * surroundings
        for match in pattern.finditer(content):
            start, stop = match.span()
            before = content[max(start - reach, 0) : start].decode(errors="ignore")
            # The first token that ends behind it: those without bytes, which end where they begin, hold nothing of it.
            position = int(np.searchsorted(ends, start, side="right"))
            yield Hit(
                position=position,
                document=self._document_at(position),
                before=before[max(len(before) - surroundings, 0) :],
                text=match[0].decode(),
                after=content[stop : stop + reach].decode(errors="ignore")[:surroundings],
            )

    def _ids(self, start: int, stop: int) -> list[int]:
        """Ids of these tokens."""
        ids = self._memory.ids(start, stop)
        # A model may have more ids than its tokenizer: those stand for no text, like the end of a document.
        ids[ids >= self._tokenizer.vocab_size] = self._tokenizer.end_of_text
        return ids.tolist()

    def _document_at(self, position: int) -> str | None:
        after = bisect.bisect_right(self._documents, position, key=lambda document: document.start)
        if after and position < self._documents[after - 1].stop:
            return self._documents[after - 1].name
        return None


def _pattern(text: str, ignore_case: bool) -> re.Pattern[bytes]:
    """What finds `text` among bytes of UTF-8: there, unlike in decoded text, every token has its exact place."""
    if not text:
        raise UserError("there is nothing to look for: give at least one character")
    try:
        if not ignore_case:
            return re.compile(re.escape(text.encode()))
        choices = [{form.encode() for form in (letter, letter.lower(), letter.upper())} for letter in text]
    except UnicodeEncodeError as error:
        raise UserError(f"what to look for is no valid Unicode at character {error.start}: give UTF-8 text") from error
    return re.compile(b"".join(b"(?:%b)" % b"|".join(map(re.escape, sorted(forms))) for forms in choices))
