"""Byte-level vocabularies: how the library `tokenizers` writes tokens that are bytes in a tokenizer.json."""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"


def _byte_characters() -> str:
    """Printable Latin-1 stands for itself, the other bytes are U+0100 onwards, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256))


_CHARACTER = dict(enumerate(_byte_characters()))
_BYTE = {character: byte for byte, character in _CHARACTER.items()}


def to_byte_level(token: bytes) -> str:
    """How a byte-level vocabulary writes a token.

    >>> to_byte_level(" é".encode())
    'ĠÃ©'
    """
    return token.decode("latin-1").translate(_CHARACTER)


def from_byte_level(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary.

    Raises:
        KeyError: it has a character that stands for no byte.
    """
    return bytes(_BYTE[character] for character in token)


def byte_level_backend(model: models.Model, split: pre_tokenizers.PreTokenizer | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of the library whose model finds byte-level tokens; `END_OF_TEXT` is its special token.

    Args:
        model: its vocabulary holds all tokens, `END_OF_TEXT` too.
        split: what cuts the text into the words that the model sees one by one; None: the text is one word.
    """
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = to_bytes if split is None else pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return backend
