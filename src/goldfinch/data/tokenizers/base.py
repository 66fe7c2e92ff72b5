"""The base class of tokenizers: text to ids by a rule of their own, ids to bytes by a table."""

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from goldfinch.data.tokenizers.byte_level import END_OF_TEXT, to_byte_level
from goldfinch.files import write_text


class Tokenizer(ABC):
    """Text to token ids and back; `decode(encode(text)) == text` for every text.

    Each id has fixed bytes, whatever surrounds it. Ids without text (the end of a document, holes in the vocabulary)
    have no bytes, and no text encodes to them.

    Attributes:
        name: "bytes", "bpe" or "world".
        end_of_text: the id that follows every document.
        end_of_text_name: how tokenizer.json calls that id.
    """

    name: str
    end_of_text: int
    end_of_text_name: str = END_OF_TEXT

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table

    @abstractmethod
    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: the text.
            special_tokens: whether the names of special tokens, such as <|im_start|> in a chat template, are encoded
                as these tokens; otherwise they are text like any other.

        Raises:
            UnicodeEncodeError: `text` holds a lone surrogate, which no UTF-8 can write.
        """

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Name -> id of the special tokens that have names."""
        return {}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` each text; faster than one by one if the tokenizer can use several threads."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text; bytes that are not UTF-8 (an incomplete character) become U+FFFD.

        Raises:
            ValueError: an id is out of range.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of `id`.

        Raises:
            ValueError: `id` is out of range.
        """
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {int(id)} is not in the {self.name} vocabulary: 0..{self.vocab_size - 1}")
        return self._table[id]

    @property
    def vocab_size(self) -> int:
        """Number of ids: 0..vocab_size - 1."""
        return len(self._table)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the vocabulary: the bytes of all ids in order, and the id that ends a document."""
        meaning = [len(self._table), self.end_of_text, *(token.hex() for token in self._table)]
        return hashlib.sha256(" ".join(map(str, meaning)).encode()).hexdigest()

    def to_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer as one of the library `tokenizers`, which also says where in the text each token is.

        It has the same ids for every text in which no special token is named; named ones it reads as these tokens,
        unless its `encode_special_tokens` is set.

        Raises:
            NotImplementedError: this kind of tokenizer has none, and so cannot be saved.
        """
        raise NotImplementedError(f"{type(self).__name__} has no to_backend, which saving it needs")

    def byte_level_vocabulary(self) -> dict[str, int]:
        """The ids of all tokens, written as in tokenizer.json; ids without text have none, but for the end of text."""
        vocabulary = {to_byte_level(token): id for id, token in enumerate(self._table) if token}
        return {self.end_of_text_name: self.end_of_text, **vocabulary}

    def save(self, path: Path) -> None:
        """Write a tokenizer.json that `load_tokenizer` and the library `tokenizers` read, atomically."""
        write_text(path, self.to_backend().to_str(pretty=True))


class StreamDecoder:
    """Decodes ids one at a time: a character that is split over tokens is returned when it is complete.

    The concatenated pieces, with `flush()` at the end, equal `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that `id` completes, often one word, sometimes none.

        Raises:
            ValueError: `id` is out of range.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    @property
    def is_inside_character(self) -> bool:
        """Whether the last id left a character incomplete."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character. Resets the decoder."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
