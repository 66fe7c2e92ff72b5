"""Tokenizers: every text comes back, streams equal wholes, World's ids are the reference's."""

import json
import random
from pathlib import Path

import pytest
import rwkv.rwkv_tokenizer as reference
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from goldfinch.data.moby_dick import moby_dick, moby_dick_chapters
from goldfinch.data.tokenizers import (
    BpeTokenizer,
    ByteTokenizer,
    StreamDecoder,
    Tokenizer,
    WorldTokenizer,
    load_tokenizer,
)
from goldfinch.errors import UserError

PARAGRAPHS: list[str] = json.loads(Path(__file__).with_name("paragraphs.json").read_text(encoding="utf-8"))
CHINESE = PARAGRAPHS[1]
MULTILINGUAL = "\n\n".join(PARAGRAPHS)


WORLD = WorldTokenizer()

each = pytest.mark.parametrize("name", ["bytes", "bpe", "world"])


@each
@settings(max_examples=60)
@given(text=st.text(max_size=200))
def test_every_text_comes_back_and_never_holds_the_end_of_text(
    tokenizer_of: dict[str, Tokenizer], name: str, text: str
) -> None:
    tokenizer = tokenizer_of[name]
    for sample in (text, text + MULTILINGUAL):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == sample
        assert tokenizer.end_of_text not in ids
        assert b"".join(tokenizer.token_bytes(id) for id in ids) == sample.encode()


@each
def test_encode_batch_is_encode_of_each(tokenizer_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizer_of[name]
    texts = [*PARAGRAPHS, "", moby_dick()[:40_000]]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@each
@settings(max_examples=60)
@given(data=st.data())
def test_stream_of_any_ids_equals_decode(tokenizer_of: dict[str, Tokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 256), max_size=40))
    stream = StreamDecoder(tokenizer)
    for _ in range(2):  # flush() leaves a fresh decoder
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_stream_joins_split_characters() -> None:
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(byte) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert [stream.push(0xE2), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


@each
def test_ids_out_of_range_are_named(tokenizer_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizer_of[name]
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"token id {id} .*0\.\.{tokenizer.vocab_size - 1}"):
            tokenizer.decode([id])


@each
def test_lone_surrogates_are_refused_alike(tokenizer_of: dict[str, Tokenizer], name: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        tokenizer_of[name].encode("a\ud800b")


@each
def test_saved_and_loaded_is_the_same_tokenizer(tokenizer_of: dict[str, Tokenizer], name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of[name]
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert (loaded.hash, loaded.vocab_size, loaded.end_of_text) == (
        tokenizer.hash,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
    )
    assert loaded.encode(MULTILINGUAL) == tokenizer.encode(MULTILINGUAL)


def test_hashes_tell_vocabularies_apart(tokenizer_of: dict[str, Tokenizer]) -> None:
    other = BpeTokenizer.train([MULTILINGUAL], 300)
    assert len({tokenizer.hash for tokenizer in [*tokenizer_of.values(), other]}) == 4


# RWKV World


def test_world_table_is_the_reference_vocabulary(oracle: reference.TRIE_TOKENIZER) -> None:
    world = WORLD
    assert world.vocab_size == 65536
    assert {id: world.token_bytes(id) for id in range(1, 65530)} == oracle.idx2token
    assert {world.token_bytes(id) for id in (0, *range(65530, 65536))} == {b""}


@settings(max_examples=200)
@given(text=st.text(max_size=100))
def test_world_ids_are_the_references(oracle: reference.TRIE_TOKENIZER, text: str) -> None:
    assert WORLD.encode(text) == oracle.encode(text)


def test_world_ids_are_the_references_on_real_text_and_on_its_own_pieces(oracle: reference.TRIE_TOKENIZER) -> None:
    random_ = random.Random(0)
    pieces = [piece.decode() for piece in oracle.idx2token.values() if _is_text(piece)]
    mixed = ["".join(random_.choices(pieces, k=5)) for _ in range(1500)]
    for text in [*PARAGRAPHS, MULTILINGUAL, moby_dick()[:100_000], *mixed]:
        assert WORLD.encode(text) == oracle.encode(text)


def _is_text(piece: bytes) -> bool:
    return piece.decode(errors="ignore").encode() == piece


# Byte-level BPE


def test_bpe_training_is_deterministic(bpe: BpeTokenizer, tmp_path: Path) -> None:
    again = BpeTokenizer.train([*moby_dick_chapters()[:3], MULTILINGUAL], 700)
    bpe.save(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_bpe_ids_are_the_librarys_also_on_long_texts(bpe: BpeTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    for text in (moby_dick()[:150_000], MULTILINGUAL * 60, CHINESE * 2500, "ab" * 30_000):
        assert bpe.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_bpe_vocabulary_must_hold_the_bytes() -> None:
    assert BpeTokenizer.train([], 257).decode(BpeTokenizer.train([], 257).encode(MULTILINGUAL)) == MULTILINGUAL
    with pytest.raises(UserError, match="must be at least 257"):
        BpeTokenizer.train(["text"], 256)


def _byte_level(path: Path, special: str = "<|endoftext|>", **parts: object) -> Path:
    """A tokenizer.json as others make them; `parts` replace parts of the usual GPT-2 style."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>", special], show_progress=False
    )
    backend.train_from_iterator([MULTILINGUAL], trainer)
    backend.add_tokens([AddedToken("        ", normalized=False)])
    backend.enable_truncation(5)
    backend.save(str(path))
    return path


LLAMA_STYLE = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
ONE_WORD = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.mark.parametrize("pre_tokenizer", [None, LLAMA_STYLE, ONE_WORD], ids=["gpt2", "llama3", "no-words"])
def test_ordinary_byte_level_files_are_read(pre_tokenizer: object, tmp_path: Path) -> None:
    parts = {"pre_tokenizer": pre_tokenizer} if pre_tokenizer else {}
    path = _byte_level(tmp_path / "theirs.json", "<|end_of_text|>", **parts)
    tokenizer = load_tokenizer(path)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_truncation()
    text = "x" + " " * 8 + moby_dick()[:40_000] + MULTILINGUAL
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text + "<pad><|end_of_text|>")) == text + "<pad><|end_of_text|>"
    assert tokenizer.end_of_text == 1
    assert tokenizer.token_bytes(1) == b""


def test_a_token_with_a_gigantic_id_is_refused(bpe: BpeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    content = json.loads(path.read_text())
    content["model"]["vocab"]["a"] = 10**9
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json has a token with the id 1000000000"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.NFKC()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"special": "<mask>"},
    ],
    ids=["normalizer", "prefix-space", "whitespace", "no-end-of-text"],
)
def test_files_that_change_the_text_or_cannot_end_it_are_refused(parts: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"theirs\.json is not a byte-level BPE tokenizer"):
        load_tokenizer(_byte_level(tmp_path / "theirs.json", **parts))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": {"type": "WordPiece"}}',
        json.dumps({"format": "goldfinch-tokenizer", "version": 2, "name": "bytes"}),
        json.dumps({"format": "goldfinch-tokenizer", "version": 1, "name": "words"}),
        json.dumps({"format": "goldfinch-tokenizer", "version": 1, "name": "bytes", "hash": "0"}),
        json.dumps({"format": "goldfinch-tokenizer", "version": 1, "name": {}}),
        pytest.param("[" * 100_000, id="nested"),
        "\xff\xfe",
    ],
)
def test_malformed_files_are_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    with pytest.raises(UserError, match=r"missing\.json"):
        load_tokenizer(tmp_path / "missing.json")


def test_moby_dick_is_its_chapters() -> None:
    chapters = moby_dick_chapters()
    assert len(chapters) == 135
    assert "".join(chapters) == moby_dick()
    assert [chapter.split(".")[0] for chapter in chapters] == [f"CHAPTER {i}" for i in range(1, 136)]
