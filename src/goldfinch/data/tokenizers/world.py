"""The RWKV World vocabulary: 65,529 pieces of text in the world's languages, encoded by longest match."""

import gzip
from functools import cached_property
from importlib import resources

from pyrwkv_tokenizer import RWKVTokenizer

from goldfinch.data.tokenizers.base import Tokenizer


class WorldTokenizer(Tokenizer):
    """Ids 1..65529 are the vocabulary, 0 ends a document, 65530..65535 are unused.

    The vocabulary is rwkv_vocab_v20230424.txt of the Python package `rwkv` (Apache License 2.0), rewritten as one
    line of hexadecimal bytes per id, from 1 on, and compressed with gzip.

    Encoding is `pyrwkv_tokenizer`'s. Decoding is by table, because that package's decoder panics on ids from 65530
    and on tokens that hold part of a character.
    """

    name = "world"
    end_of_text = 0

    def __init__(self) -> None:
        packed = resources.files(__package__).joinpath("rwkv_vocab_v20230424.txt.gz").read_bytes()
        pieces = [bytes.fromhex(line) for line in gzip.decompress(packed).decode().splitlines()]
        super().__init__([b"", *pieces, *[b""] * (65535 - len(pieces))])

    @cached_property
    def _encoder(self) -> RWKVTokenizer:
        # Building it takes most of a second, which those who only decode need not wait for.
        return RWKVTokenizer()

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Greedy longest match."""
        return self._encoder.encode(text)
