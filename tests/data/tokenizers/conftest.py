"""One tokenizer of each kind, and the reference of World."""

import json
from pathlib import Path

import pytest
import rwkv.rwkv_tokenizer as reference

from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer


@pytest.fixture(scope="session")
def paragraphs() -> list[str]:
    """Short texts in several scripts."""
    return json.loads(Path(__file__).with_name("paragraphs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def multilingual(paragraphs: list[str]) -> str:
    return "\n\n".join(paragraphs)


@pytest.fixture(scope="session")
def bpe(multilingual: str) -> BpeTokenizer:
    return BpeTokenizer.train([*moby_dick_chapters()[:3], multilingual], 700)


@pytest.fixture(scope="session")
def tokenizer_of(bpe: BpeTokenizer) -> dict[str, Tokenizer]:
    return {"bytes": ByteTokenizer(), "bpe": bpe, "world": WorldTokenizer()}


@pytest.fixture(scope="session")
def oracle() -> reference.TRIE_TOKENIZER:
    return reference.TRIE_TOKENIZER(str(Path(reference.__file__).with_name("rwkv_vocab_v20230424.txt")))
