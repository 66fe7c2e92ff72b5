"""The content of a context file, without the model that wrote it: its size, its text, and where a string occurs."""

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
from goldfinch.inference.context_file.description import Description, Document, model_folder
from goldfinch.inference.context_file.format import open_key_cache
from goldfinch.pretrained import find_model
from goldfinch.settings import did_you_mean

MAX_CHARACTER_BYTES = 4  # in UTF-8


def stored_bytes(path: Path) -> dict[str, int]:
    """Bytes of each part of a context file: "ids", "latents", "scales", "checksums", and each "state.<position>"."""
    sizes: Counter[str] = Counter()
    with safe_open(path, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 (not a dictionary)
            part, _, rest = name.partition(".")
            if part == "state":
                part = f"{part}.{rest.partition('.')[0]}"
            sizes[part] += stored.get_tensor(name).nbytes  # memory-mapped: the numbers are not read
    return dict(sizes)


def require_model_folder(path: Path, description: Description, given: Path | None = None) -> Path:
    """Find the folder of the model that wrote a context file: the given one, or the one that the file names.

    Raises:
        UserError: the file does not say, or the folder no longer exists.
    """
    folder = find_model(given) if given is not None else model_folder(path, description)
    if folder is None:
        raise UserError(f"{path} does not say where its model is: give the model folder with -m")
    if not folder.is_dir():
        raise UserError(f"model folder {folder} not found" + ("" if given else f" ({path} names it): give it with -m"))
    return folder


def require_stored_tokenizer(path: Path, description: Description, given: Path | None = None) -> Tokenizer:
    """Load the tokenizer that a context file was written with, from its model folder or the given one.

    Raises:
        UserError: the file was written from ids, or the folder is missing or has no or another tokenizer.
    """
    if not description.tokenizer:
        raise UserError(f"{path} was written from token ids, without a tokenizer: it holds no text")
    folder = require_model_folder(path, description, given)
    tokenizer = read_tokenizer(folder, description.model)
    if tokenizer is None:
        raise UserError(f"{folder} has no {TOKENIZER}: give the folder of the model that wrote {path} with -m")
    if tokenizer.hash != description.tokenizer:
        raise UserError(
            f"{path} was written with another tokenizer than that of {folder}: give the folder of its model with -m"
        )
    return tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """An occurrence of a string."""

    position: int
    """Of the token in which it starts."""
    document: str | None
    """Name of the document in which it starts; None outside documents."""
    before: str
    """The text just before it."""
    text: str
    """The string as it occurs there."""
    after: str
    """The text just after it."""


class StoredText:
    """The text of a context file, decoded on demand from ids and tokenizer.

    Args:
        path: the file.
        description: of it.
        tokenizer: that it was written with.
    """

    def __init__(self, path: Path, description: Description, tokenizer: Tokenizer) -> None:
        self._path = path
        self._key_cache = open_key_cache(path, description)
        self._tokenizer = tokenizer
        self._documents = sorted(description.documents, key=lambda document: document.start)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self._key_cache)

    def document(self, name: str) -> Document:
        """Find a document by name.

        Raises:
            UserError: there is none, or there are several.
        """
        found = [document for document in self._documents if document.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            starts = ", ".join(f"{document.start}" for document in found)
            raise UserError(
                f"{self._path} has {len(found)} documents named {name!r}, which start at tokens {starts}: "
                "give a range of tokens"
            )
        names = list(dict.fromkeys(document.name for document in self._documents))
        hint = did_you_mean(name, names) if len(names) <= 10 else "`goldfinch cache info --all` lists them"
        raise UserError(
            f"{self._path} has no document {name!r}; {hint if names else 'its text has no named documents'}"
        )

    def read(self, start: int, stop: int) -> Iterator[str]:
        """Decode the tokens start .. stop - 1, piece by piece; a character cut in two becomes U+FFFD.

        Raises:
            UserError: these tokens are corrupt.
        """
        decoder = StreamDecoder(self._tokenizer)
        for first, last in self._key_cache.spans(start):
            if first >= stop:
                break
            yield "".join(map(decoder.push, self._ids(first, min(last, stop))))
        yield decoder.flush()

    def find(self, text: str, *, ignore_case: bool = False, context_chars: int = 0) -> Iterator[Hit]:
        """Find all occurrences of `text`, in order, without overlaps; across the borders of tokens and documents.

        Args:
            text: what to find, literally.
            ignore_case: whether upper and lower case are the same.
            context_chars: maximum number of characters to show on either side.

        Raises:
            UserError: the text is empty or not valid Unicode, or the file is corrupt.
        """
        pattern = _pattern(text, ignore_case)
        tokens = [self._tokenizer.token_bytes(id) for id in self._ids(0, len(self))]
        ends = np.cumsum([len(token) for token in tokens])
        content = b"".join(tokens)
        reach = MAX_CHARACTER_BYTES * context_chars
        for match in pattern.finditer(content):
            start, stop = match.span()
            before = content[max(start - reach, 0) : start].decode(errors="ignore")
            # The first token that ends after it: tokens without bytes end where they start, and hold nothing of it.
            position = int(np.searchsorted(ends, start, side="right"))
            yield Hit(
                position=position,
                document=self._document_at(position),
                before=before[max(len(before) - context_chars, 0) :],
                text=match[0].decode(),
                after=content[stop : stop + reach].decode(errors="ignore")[:context_chars],
            )

    def _ids(self, start: int, stop: int) -> list[int]:
        """The ids of some tokens."""
        ids = self._key_cache.ids(start, stop)
        # A model may have more ids than its tokenizer: those have no text, like the end of a document.
        ids[ids >= self._tokenizer.vocab_size] = self._tokenizer.end_of_text
        return ids.tolist()

    def _document_at(self, position: int) -> str | None:
        after = bisect.bisect_right(self._documents, position, key=lambda document: document.start)
        if after and position < self._documents[after - 1].stop:
            return self._documents[after - 1].name
        return None


def _pattern(text: str, ignore_case: bool) -> re.Pattern[bytes]:
    """A pattern for `text` in UTF-8 bytes: there, unlike in decoded text, every token has an exact position."""
    if not text:
        raise UserError("the text to find is empty: give at least one character")
    try:
        if not ignore_case:
            return re.compile(re.escape(text.encode()))
        choices = [{form.encode() for form in (letter, letter.lower(), letter.upper())} for letter in text]
    except UnicodeEncodeError as error:
        raise UserError(f"the text to find is not valid Unicode at character {error.start}: give UTF-8 text") from error
    return re.compile(b"".join(b"(?:%b)" % b"|".join(map(re.escape, sorted(forms))) for forms in choices))
