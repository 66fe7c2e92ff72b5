"""The RWKV World vocabulary: 65,529 pieces of text in the world's languages, encoded by longest match."""

import contextlib
import gzip
from functools import cache, cached_property
from importlib import resources

import tokenizers
from pyrwkv_tokenizer import RWKVTokenizer
from tokenizers import Regex, models, pre_tokenizers

from goldfinch.data.tokenizers.base import Tokenizer
from goldfinch.data.tokenizers.byte_level import byte_level_backend
from goldfinch.data.tokenizers.longest_match import longest_match_pattern


@cache
def _pieces() -> list[bytes]:
    """The bytes of the ids from 1 on."""
    packed = resources.files(__package__).joinpath("rwkv_vocab_v20230424.txt.gz").read_bytes()
    return [bytes.fromhex(line) for line in gzip.decompress(packed).decode().splitlines()]


@cache
def _longest_match() -> str:
    texts = []
    for piece in _pieces():
        with contextlib.suppress(UnicodeDecodeError):  # a part of a character
            texts.append(piece.decode())
    return longest_match_pattern(texts)


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
        pieces = _pieces()
        super().__init__([b"", *pieces, *[b""] * (65535 - len(pieces))])

    @cached_property
    def _encoder(self) -> RWKVTokenizer:
        # Building it takes most of a second, which those who only decode need not wait for.
        return RWKVTokenizer()

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Greedy longest match."""
        return self._encoder.encode(text)

    def to_backend(self) -> tokenizers.Tokenizer:
        """A regular expression whose matches are the longest tokens, and WordPiece for characters that are not tokens.

        WordPiece is longest match too, but its time grows with the cube of a word's length. Here its words are single
        tokens, or single characters, which it splits into bytes and pairs of bytes if they are not tokens.

        The ids are the reference's, by the following steps.

        1. Every token is either one or several whole characters, or a part of a single character.
        2. So where a character starts, the longest token is the longest of those with whole characters, if there is
           any, and otherwise a part of this character; then all tokens up to its end are parts of it.
        3. The regular expression matches that longest token with whole characters or, if there is none, the one
           character, within which WordPiece finds the longest parts.
        """
        model = models.WordPiece(
            vocab=self.byte_level_vocabulary(),
            unk_token="",  # never needed: each byte is a token
            continuing_subword_prefix="",
            max_input_chars_per_word=max(map(len, _pieces())),
        )
        return byte_level_backend(model, pre_tokenizers.Split(Regex(_longest_match()), "isolated"))
