"""Token shards: what is read is what was written, and damage is found and named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.data.checksums import BLOCK_BYTES
from goldfinch.data.shard_writer import write_dataset
from goldfinch.data.shards import Index, TokenDataset, verify
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer
from goldfinch.errors import UserError

DOCUMENTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13]]
WITH_ENDS = [token for document in DOCUMENTS for token in [*document, 256]]


def write(directory: Path, shard_tokens: int = 4, overwrite: bool = False) -> Path:
    with write_dataset(directory, ByteTokenizer(), shard_tokens=shard_tokens, overwrite=overwrite) as writers:
        for document in DOCUMENTS:
            writers["train"].append(document, len(document))
        writers["validation"].append([65, 66], 2, continues=True)
        writers["validation"].append([67], 1)
    return directory


@pytest.mark.parametrize("shard_tokens", [1, 4, 5, 6, 7, 100])
def test_any_span_reads_across_shard_borders(tmp_path: Path, shard_tokens: int) -> None:
    data = TokenDataset.open(write(tmp_path / "d", shard_tokens), "train")
    assert len(data) == len(WITH_ENDS) == 16
    for start in range(len(data) + 1):
        for count in range(len(data) - start + 1):
            tokens = data.tokens(start, count)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == WITH_ENDS[start : start + count]
    assert data.document_starts.tolist() == [0, 6, 8]
    assert data.text_bytes == 13
    for start, count in ((-1, 2), (15, 2), (0, -1)):
        with pytest.raises(IndexError):
            data.tokens(start, count)
    pieces = TokenDataset.open(tmp_path / "d", "validation")
    assert pieces.tokens(0, 4).tolist() == [65, 66, 67, 256]
    assert pieces.document_starts.tolist() == [0]
    assert pieces.text_bytes == 3


@settings(max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(0, 255), max_size=12), min_size=1, max_size=10),
    shard_tokens=st.integers(1, 9),
)
def test_documents_begin_where_the_index_says(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    directory = tmp_path_factory.mktemp("shards") / "d"
    with write_dataset(directory, ByteTokenizer(), shard_tokens=shard_tokens) as writers:
        for document in documents:
            writers["train"].append(document, len(document))
    data = TokenDataset.open(directory, "train")
    ends = [*data.document_starts[1:].tolist(), len(data)]
    read = [data.tokens(start, end - start).tolist() for start, end in zip(data.document_starts, ends, strict=True)]
    assert read == [[*document, 256] for document in documents]


class _Large(Tokenizer):
    """Stands for a vocabulary beyond 16 bits."""

    name = "bytes"
    end_of_text = 70_000

    def __init__(self) -> None:
        super().__init__([b""] * 70_001)

    def to_backend(self):
        return ByteTokenizer().to_backend()  # what is saved does not matter here

    def encode(self, text: str) -> list[int]:
        return [69_999 for _ in text]


@pytest.mark.parametrize(("tokenizer", "size"), [(WorldTokenizer(), 2), (_Large(), 4)])
def test_ids_take_two_bytes_where_they_can(tokenizer: Tokenizer, size: int, tmp_path: Path) -> None:
    with write_dataset(tmp_path / "d", tokenizer) as writers:
        writers["train"].append([tokenizer.vocab_size - 2], 1)
    data = TokenDataset.open(tmp_path / "d", "train")
    assert data.tokens(0, 2).tolist() == [tokenizer.vocab_size - 2, tokenizer.end_of_text]
    assert (data.vocab_size, data.tokenizer_hash) == (tokenizer.vocab_size, tokenizer.hash)
    assert (tmp_path / "d" / "train-00000.bin").stat().st_size == 2 * size


def test_intact_data_verifies(tmp_path: Path) -> None:
    write(tmp_path / "d")
    assert [(split, len(data)) for split, data in verify(tmp_path / "d")] == [("train", 16), ("validation", 4)]


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.docs"])
def test_missing_truncated_and_grown_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "d") / name
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name} has {len(damaged)} bytes instead of {len(content)}"):
            TokenDataset.open(tmp_path / "d", "train")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: No such file"):
        TokenDataset.open(tmp_path / "d", "train")


def flip_a_bit(path: Path, at: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["train-00002.bin", "validation-00000.bin", "train-00000.docs", "train-00001.sums", "index.json"]
)
def test_verify_finds_one_changed_bit(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "d") / name
    flip_a_bit(path, path.read_bytes().find(b"256") if name == "index.json" else 0)
    with pytest.raises(UserError, match=rf"{name} is corrupt"):
        list(verify(tmp_path / "d"))


def test_a_changed_bit_is_found_when_its_block_is_first_used(tmp_path: Path) -> None:
    block = BLOCK_BYTES // 2
    with write_dataset(tmp_path / "d", ByteTokenizer(), shard_tokens=3 * block) as writers:
        writers["train"].append(np.arange(5 * block) % 256, 1)
    flip_a_bit(tmp_path / "d" / "train-00000.bin", BLOCK_BYTES + 7)
    data = TokenDataset.open(tmp_path / "d", "train")
    for start in (0, 2 * block, 4 * block):
        assert data.tokens(start, block).tolist() == [i % 256 for i in range(start, start + block)]
    for start, count in ((block, 1), (2 * block - 1, 1), (0, len(data))):
        with pytest.raises(UserError, match=r"train-00000\.bin is corrupt: bytes 65,536 to 131,071 do not match"):
            data.tokens(start, count)


def test_document_starts_are_verified_when_they_are_read(tmp_path: Path) -> None:
    flip_a_bit(write(tmp_path / "d") / "train-00000.docs")
    with pytest.raises(UserError, match=r"train-00000\.docs is corrupt"):
        _ = TokenDataset.open(tmp_path / "d", "train").document_starts


def test_ids_outside_the_vocabulary_are_named_with_their_file(tmp_path: Path) -> None:
    with write_dataset(tmp_path / "d", ByteTokenizer()) as writers:
        writers["train"].append([1, 999, 3], 3)
    with pytest.raises(UserError, match=r"train-00000\.bin has the token id 999, but its tokenizer has 257 ids"):
        TokenDataset.open(tmp_path / "d", "train").tokens(0, 1)


def test_verify_finds_another_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "d")
    BpeTokenizer.train(["text"], 257).save(tmp_path / "d" / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer of these tokens"):
        list(verify(tmp_path / "d"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 99}, "this program reads 3"),
        ({"format": "other"}, "not the index of a data directory"),
        ({"dtype": "float32"}, "corrupt"),
        ({"train": None}, "corrupt"),
        ({"train": [[]]}, "corrupt"),
        ({"train": [{"file": "../x.bin"}]}, "corrupt"),
        ({"vocab_size": {"a": 1}}, "vocab_size must be a whole number"),
        ({"tokenizer": []}, "corrupt"),
        ({"end_of_text": 255}, r"corrupt \(its checksum does not match"),
        ([], "not the index of a data directory"),
        (None, "not valid JSON"),
    ],
)
def test_index_that_cannot_be_used_is_refused(change: dict | list | None, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d") / "index.json"
    content = path.read_text()
    changed = json.loads(content) | change if isinstance(change, dict) else change
    path.write_text(content[:-9] if changed is None else json.dumps(changed))
    with pytest.raises(UserError, match=says):
        TokenDataset.open(tmp_path / "d", "train")


def test_a_split_without_shards_and_shards_that_cannot_be_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "d")
    index = Index.load(directory)
    replace(index, train=()).save(directory)
    with pytest.raises(UserError, match="has no train tokens"):
        TokenDataset.open(directory, "train")
    for change in ({"file": "../train-00000.bin"}, {"tokens": -4}):
        with pytest.raises(UserError, match=r"is not the name|cannot have"):
            replace(index.train[0], **change)


def test_directory_without_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index.json is missing; make one: goldfinch data prepare FILES -o"):
        TokenDataset.open(tmp_path, "train")


def test_failed_writing_leaves_nothing_and_failed_overwriting_leaves_the_old(tmp_path: Path) -> None:
    def fail(overwrite: bool) -> None:
        with write_dataset(tmp_path / "d", ByteTokenizer(), overwrite=overwrite) as writers:
            writers["train"].append([1], 1)
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        fail(overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "d")
    with pytest.raises(RuntimeError):
        fail(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert len(list(verify(tmp_path / "d"))) == 2


def test_overwriting_replaces_all_and_only_data_directories(tmp_path: Path) -> None:
    write(tmp_path / "d", shard_tokens=1)
    with pytest.raises(UserError, match="exists: choose another directory, or give --overwrite"):
        write(tmp_path / "d")
    write(tmp_path / "d", shard_tokens=100, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "d").glob("*.bin")) == ["train-00000.bin", "validation-00000.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("home", "file"):
        with pytest.raises(UserError, match="is not a data directory, so it is not overwritten"):
            write(tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()
