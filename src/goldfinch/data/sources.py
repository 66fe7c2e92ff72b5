"""Where the documents of a data directory come from, and how they become tokens."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.documents import Document, input_bytes, read_documents
from goldfinch.data.indexed_dataset import IndexedDataset, TokenDocument, is_index_file
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError

BATCH_LENGTH = 1 << 20
"""Characters or tokens of documents that are encoded together, at least: enough for several threads."""
T = TypeVar("T")


def in_batches(items: Iterable[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of items that are together at least `BATCH_LENGTH` long, and what is left."""
    batch, total = list[T](), 0
    for item in items:
        batch.append(item)
        total += length(item)
        if total >= BATCH_LENGTH:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class Encoded(NamedTuple):
    """A document as tokens."""

    ids: Sequence[int] | np.ndarray
    """Without the end of text."""
    text_bytes: int
    """UTF-8 bytes of the text."""
    answers: np.ndarray | None = None
    """Whether the loss is on each id; None: on all."""


class Source(Protocol):
    """Where documents come from, and how they become tokens."""

    files: Sequence[Path]
    size: int  # of the files, in bytes
    has_chat: bool  # whether a conversation was read so far

    def read(self, on_error: Callable[[str], None] | None) -> Iterator[Any]:
        """The documents in order; may be called several times."""

    def encode(self, documents: Sequence[Any]) -> Iterable[Encoded]:
        """Each document as tokens."""


class TextSource:
    """Files of text and conversations.

    Args:
        files, text_field, encodings, chat_template: as `read_documents` takes them.
        tokenizer: of the tokens.
        find_answers: whether to find which tokens are answers.

    Raises:
        UserError: a file is missing, or is not text.
    """

    has_chat = False

    def __init__(
        self,
        files: Sequence[Path],
        text_field: str,
        encodings: Mapping[Path, str] | None,
        chat_template: ChatTemplate,
        tokenizer: Tokenizer,
        find_answers: bool,
    ) -> None:
        self.files, self._tokenizer, self._find_answers = files, tokenizer, find_answers
        self._text_field, self._encodings, self._chat_template = text_field, encodings, chat_template
        for file in files:
            if file.suffix == ".bin" and (index := file.with_suffix(".idx")).exists():
                raise UserError(f"{file} holds the tokens of an indexed dataset: name its index, {index}")
        read_documents(files)  # reports missing files
        self.size = input_bytes(files)

    def only(self, file: Path) -> "TextSource":
        """The same of one of the files."""
        one = copy.copy(self)
        one.files, one.size = [file], input_bytes([file])
        return one

    def read(self, on_error: Callable[[str], None] | None) -> Iterator[Document]:
        """The documents in order."""
        for document in read_documents(
            self.files, self._text_field, on_error, self._encodings, self._chat_template, self._find_answers
        ):
            self.has_chat |= document.is_chat
            yield document

    def encode(self, documents: Sequence[Document]) -> Iterator[Encoded]:
        """Each document as tokens."""
        # Together: faster. Conversations have special tokens, one by one.
        texts = iter(self._tokenizer.encode_batch([document.text for document in documents if not document.is_chat]))
        for document in documents:
            ids, answers = self._encode_chat(document) if document.is_chat else (next(texts), None)
            yield Encoded(ids, len(document.text.encode()), answers)

    def _encode_chat(self, document: Document) -> tuple[list[int], np.ndarray | None]:
        """The ids of a conversation, and which of them are answers, if they are looked for."""
        if not self._find_answers:
            return self._tokenizer.encode(document.text, special_tokens=True), None
        # Part by part, as in a chat, where answers follow what is tokenised already.
        borders = [0, *itertools.chain.from_iterable(document.answers), len(document.text)]
        ids: list[int] = []
        answers: list[bool] = []
        for number, (start, stop) in enumerate(itertools.pairwise(borders)):
            part = self._tokenizer.encode(document.text[start:stop], special_tokens=True)
            ids += part
            answers += [number % 2 == 1] * len(part)
        return ids, np.array(answers, dtype=bool)


class IndexedSource:
    """Indexed datasets, which are tokens already.

    Args:
        files: the .idx files.
        tokenizer: that they were made with.

    Raises:
        UserError: others are among them, or one is corrupt.
    """

    has_chat = False

    def __init__(self, files: Sequence[Path], tokenizer: Tokenizer) -> None:
        texts = [file for file in files if not is_index_file(file)]
        if texts:
            raise UserError(f"{texts[0]} is text and others are .idx files: prepare them separately and train on both")
        self.files, self._tokenizer = files, tokenizer
        self._datasets = [IndexedDataset(file) for file in files]
        self.size = sum(dataset.size for dataset in self._datasets)
        self._token_bytes = np.array([len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)])

    def read(self, on_error: Callable[[str], None] | None) -> Iterator[TokenDocument]:
        """The documents in order."""
        before = 0
        for dataset in self._datasets:
            yield from dataset.read(self._tokenizer.vocab_size, self._tokenizer.end_of_text, before)
            before += dataset.size

    def encode(self, documents: Sequence[TokenDocument]) -> Iterator[Encoded]:
        """Each document as tokens."""
        return (Encoded(document.ids, int(self._token_bytes[document.ids].sum())) for document in documents)
