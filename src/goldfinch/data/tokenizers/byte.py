"""One token per byte."""

import tokenizers
from tokenizers import models

from goldfinch.data.tokenizers.base import Tokenizer
from goldfinch.data.tokenizers.byte_level import byte_level_backend


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes of UTF-8; 256 ends a document."""

    name = "bytes"
    end_of_text = 256

    def __init__(self) -> None:
        super().__init__([*(bytes([byte]) for byte in range(256)), b""])

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """One id per byte of UTF-8."""
        return list(text.encode())

    def to_backend(self) -> tokenizers.Tokenizer:
        """Byte-pair encoding without pairs."""
        return byte_level_backend(models.BPE(vocab=self.byte_level_vocabulary(), merges=[]))
