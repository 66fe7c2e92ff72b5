"""tokenizer.json: the library `tokenizers` finds our ids in it, also in World's, and we know it again."""

import json
import random
from pathlib import Path

import pytest
import rwkv.rwkv_tokenizer as reference
import tokenizers
from tokenizers import normalizers, processors

from goldfinch.data.moby_dick import moby_dick
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer, load_tokenizer
from goldfinch.data.tokenizers.byte_level import from_byte_level, to_byte_level
from goldfinch.errors import UserError

END_OF_TEXT = "<|endoftext|>"

# First and last characters of blocks of Unicode.
BLOCKS = {
    "Latin": (0x0000, 0x024F),
    "phonetic and combining": (0x0250, 0x036F),
    "Greek": (0x0370, 0x03FF),
    "Cyrillic": (0x0400, 0x052F),
    "Armenian and Hebrew": (0x0530, 0x05FF),
    "Arabic": (0x0600, 0x06FF),
    "Devanagari to Sinhala": (0x0900, 0x0DFF),
    "Thai to Myanmar": (0x0E00, 0x109F),
    "Hangul jamo": (0x1100, 0x11FF),
    "Vietnamese": (0x1E00, 0x1EFF),
    "punctuation and symbols": (0x2000, 0x2BFF),
    "kana": (0x3000, 0x30FF),
    "Han": (0x4E00, 0x9FFF),
    "Hangul": (0xAC00, 0xD7A3),
    "forms and specials": (0xF900, 0xFFFF),
    "historic scripts": (0x10000, 0x10FFF),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "Han, extended": (0x20000, 0x2A6DF),
    "private use": (0x10FFF0, 0x10FFFF),
}


@pytest.fixture(scope="module")
def library_of(
    tokenizer_of: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tokenizers.Tokenizer]:
    """What the library reads from the files that `save` writes; names of special tokens are text in it, as in ours."""
    folder = tmp_path_factory.mktemp("saved")
    libraries = {}
    for name, tokenizer in tokenizer_of.items():
        tokenizer.save(folder / f"{name}.json")
        libraries[name] = tokenizers.Tokenizer.from_file(str(folder / f"{name}.json"))
        libraries[name].encode_special_tokens = True
    return libraries


@pytest.fixture(scope="module")
def world(library_of: dict[str, tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    return library_of["world"]


each = pytest.mark.parametrize("name", ["bytes", "bpe", "world"])


def ids_of(library: tokenizers.Tokenizer, text: str) -> list[int]:
    return library.encode(text).ids


@each
def test_the_library_has_our_ids_and_our_text(
    tokenizer_of: dict[str, Tokenizer], library_of: dict[str, tokenizers.Tokenizer], paragraphs: list[str], name: str
) -> None:
    tokenizer, library = tokenizer_of[name], library_of[name]
    for text in [*paragraphs, "\n".join(paragraphs), "", moby_dick()[:40_000], f"a{END_OF_TEXT}b"]:
        ids = ids_of(library, text)
        assert ids == tokenizer.encode(text)
        assert library.decode(ids) == text


# World


def test_each_token_of_world_is_whole_characters_or_a_part_of_one() -> None:
    """The first step of the argument in `WorldTokenizer.to_backend`."""
    world = WorldTokenizer()
    parts = 0
    for id in range(1, 65530):
        token = world.token_bytes(id)
        try:
            token.decode()
        except UnicodeDecodeError:
            parts += 1
            # Only a first byte can begin a character.
            assert all(0x80 <= byte < 0xC0 for byte in token[1:])
    assert parts == 486


@pytest.mark.parametrize("block", BLOCKS)
def test_world_is_the_reference_in_every_script(
    world: tokenizers.Tokenizer, oracle: reference.TRIE_TOKENIZER, block: str
) -> None:
    first, last = BLOCKS[block]
    letters = list(map(chr, range(first, last + 1)))
    random_ = random.Random(block)
    words = ["".join(random_.choices(letters, k=random_.randrange(1, 9))) for _ in range(500)]
    for text in ("".join(letters), " ".join(letters), " ".join(words), "".join(words), "。\n".join(words)):
        assert ids_of(world, text) == oracle.encode(text)


def test_world_is_the_reference_on_ten_thousand_random_texts(
    world: tokenizers.Tokenizer, oracle: reference.TRIE_TOKENIZER
) -> None:
    random_ = random.Random(0)
    pieces = [text for piece in oracle.idx2token.values() if (text := piece.decode(errors="ignore"))]
    beginnings = [piece[: random_.randrange(1, len(piece) + 1)] for piece in pieces]
    everything = [*map(chr, range(0xD800)), *map(chr, range(0xE000, 0x110000))]
    pools = [pieces, beginnings, everything, list("ab \n\t\r0.,'<|>"), list("aé中ёあ한😀 \u0301\u200d\ufe0f\ufffd")]
    for pool in range(0x0900, 0x3000, 0x80):
        pools.append(list(map(chr, range(pool, pool + 0x80))))
    texts = []
    for _ in range(10_000):
        mixed = random_.choices(pools, k=3)
        texts.append("".join(random_.choice(random_.choice(mixed)) for _ in range(random_.randrange(1, 40))))
    encodings = world.encode_batch(texts)
    for text, encoding in zip(texts, encodings, strict=True):
        assert encoding.ids == oracle.encode(text), repr(text)
        assert world.decode(encoding.ids) == text


RUNS = {
    "one letter": "a",
    "spaces": " ",
    "newlines": "\n",
    "one emoji": "😀",
    "one Han character": "中",
    "zeros": "\0",
    "joined emoji": "👩\u200d",
    "letters": "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=50_000)),
    "digits": "".join(random.Random(0).choices("0123456789", k=50_000)),
    "Han": "".join(map(chr, random.Random(0).choices(range(0x4E00, 0xA000), k=50_000))),
}


@pytest.mark.parametrize("run", RUNS)
def test_texts_without_spaces_are_exact_and_end(
    world: tokenizers.Tokenizer, oracle: reference.TRIE_TOKENIZER, run: str
) -> None:
    """With WordPiece alone, whose time grows with the cube of the length, they would take days."""
    text = RUNS[run] * (200_000 // len(RUNS[run]))
    assert ids_of(world, text) == oracle.encode(text)


# Offsets and parts of characters


@each
def test_offsets_say_where_the_tokens_are(
    tokenizer_of: dict[str, Tokenizer], library_of: dict[str, tokenizers.Tokenizer], multilingual: str, name: str
) -> None:
    tokenizer = tokenizer_of[name]
    text = " two  words\n\té中文😀 " + multilingual
    encoding = library_of[name].encode(text)
    reached = 0
    for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        token = tokenizer.token_bytes(id)
        assert start <= reached <= end
        if len(text[start:end].encode()) == len(token):
            assert text[start:end].encode() == token
        else:  # a part of the characters that it touches
            assert token in text[start:end].encode()
        reached = end
    assert reached == len(text)


@each
def test_the_library_decodes_parts_of_characters_as_we_do(
    tokenizer_of: dict[str, Tokenizer], library_of: dict[str, tokenizers.Tokenizer], name: str
) -> None:
    tokenizer, library = tokenizer_of[name], library_of[name]
    random_ = random.Random(0)
    some = tokenizer.encode("中文é😀 a\n𐍈ё한")
    for number in range(500):
        ids = random_.choices(some if number % 2 else range(tokenizer.vocab_size), k=12)
        assert library.decode(ids) == tokenizer.decode(ids)  # special tokens and holes have no text


def test_tokens_are_written_as_byte_level_vocabularies_do() -> None:
    every_byte = bytes(range(256))
    assert from_byte_level(to_byte_level(every_byte)) == every_byte
    assert to_byte_level(" é\n".encode()) == "ĠÃ©Ċ"
    assert len(set(to_byte_level(every_byte))) == 256


# Reading


@each
def test_what_the_library_writes_again_is_still_the_same_tokenizer(
    tokenizer_of: dict[str, Tokenizer],
    library_of: dict[str, tokenizers.Tokenizer],
    multilingual: str,
    name: str,
    tmp_path: Path,
) -> None:
    tokenizer = tokenizer_of[name]
    library = tokenizers.Tokenizer.from_str(library_of[name].to_str())
    library.post_processor = processors.TemplateProcessing(single="$A")
    library.enable_padding(pad_token=END_OF_TEXT)
    library.enable_truncation(4)
    library.save(str(tmp_path / "again.json"), pretty=False)
    loaded = load_tokenizer(tmp_path / "again.json")
    assert type(loaded) is type(tokenizer)
    assert (loaded.hash, loaded.end_of_text) == (tokenizer.hash, tokenizer.end_of_text)
    assert loaded.encode(multilingual) == tokenizer.encode(multilingual)


@pytest.mark.parametrize("kind", [ByteTokenizer, WorldTokenizer])
def test_files_of_before_the_library_are_read(kind: type[ByteTokenizer | WorldTokenizer], tmp_path: Path) -> None:
    old = {"format": "goldfinch-tokenizer", "version": 1, "name": kind.name, "hash": kind().hash}
    (tmp_path / "tokenizer.json").write_text(json.dumps(old))
    assert type(load_tokenizer(tmp_path / "tokenizer.json")) is kind


@pytest.mark.parametrize("kind", [ByteTokenizer, WorldTokenizer])
def test_tokens_that_were_added_are_kept(
    kind: type[ByteTokenizer | WorldTokenizer], paragraphs: list[str], tmp_path: Path
) -> None:
    """With them it is another vocabulary: the library encodes it, in slices that change nothing."""
    library = kind().to_backend()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.add_tokens(["goldfinch"])
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    start = library.token_to_id("<|im_start|>")
    assert loaded.special_token_ids["<|im_start|>"] == start
    assert loaded.encode("<|im_start|>a", special_tokens=True) == [start, *kind().encode("a")]
    assert loaded.encode("goldfinch") == [start + 2]
    text = moby_dick()[:100_000] + "".join(paragraphs) * 10 + paragraphs[1] * 100 + "<|im_start|>"
    assert loaded.encode(text) == kind().encode(text)
    assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize("kind", [ByteTokenizer, WorldTokenizer])
def test_a_damaged_vocabulary_is_refused(kind: type[ByteTokenizer | WorldTokenizer], tmp_path: Path) -> None:
    content = json.loads(kind().to_backend().to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"tokenizer\.json is damaged: .* of {kind.name}, but 2 wrong ids"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", [ByteTokenizer, WorldTokenizer])
def test_a_vocabulary_of_changed_text_is_refused(kind: type[ByteTokenizer | WorldTokenizer], tmp_path: Path) -> None:
    library = kind().to_backend()
    library.normalizer = normalizers.Lowercase()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a byte-level BPE tokenizer.*changes the text"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_puts_tokens_around_texts_is_written_without_them(bpe: BpeTokenizer, tmp_path: Path) -> None:
    """Our models see texts without them, so others who read the file must, too."""
    library = bpe.to_backend()
    library.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    library.save(str(tmp_path / "theirs.json"))
    load_tokenizer(tmp_path / "theirs.json").save(tmp_path / "ours.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json")).encode("word").ids == bpe.encode("word")
