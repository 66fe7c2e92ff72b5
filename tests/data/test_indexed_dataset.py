"""Indexed datasets: what is written is read back exactly, and false lengths are found before they cost memory."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.data import indexed_dataset
from goldfinch.data.export import export_indexed
from goldfinch.data.indexed_dataset import IndexedDataset, write_indexed
from goldfinch.data.prepare import prepare
from goldfinch.data.shards import SPLITS, TokenDataset, verify
from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer
from goldfinch.errors import UserError

# Two documents as RWKV's tools write them: ids of the World vocabulary in uint16, each ended by 0.
IDS = struct.pack("<5H", 301, 65000, 0, 7, 0)
INDEX = (
    b"MMIDIDX\0\0"
    + struct.pack("<QBQQ", 1, 8, 2, 3)
    + struct.pack("<2i", 3, 2)
    + struct.pack("<2q", 0, 6)
    + struct.pack("<3q", 0, 1, 2)
)


def pair(folder: Path, index: bytes = INDEX, ids: bytes = IDS) -> Path:
    (folder / "p.bin").write_bytes(ids)
    (folder / "p.idx").write_bytes(index)
    return folder / "p.idx"


def read(path: Path, end_of_text: int = 0) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for piece in IndexedDataset(path).read(65536, end_of_text):
        documents[-1] += piece.ids.tolist()
        documents += [] if piece.continues else [[]]
    assert documents.pop() == []
    return documents


def test_a_pair_spelled_out_byte_for_byte_is_read_and_written(tmp_path: Path) -> None:
    path = pair(tmp_path)
    assert read(path) == [[301, 65000], [7]]
    write_indexed(tmp_path / "w.idx", [[np.array([301]), np.array([65000, 0])], [np.array([7, 0])]], 65536)
    assert (tmp_path / "w.idx").read_bytes() == INDEX
    assert (tmp_path / "w.bin").read_bytes() == IDS


@pytest.mark.parametrize(("code", "letter"), [(1, "B"), (2, "b"), (3, "h"), (4, "i"), (5, "q"), (8, "H")])
def test_every_integer_type(tmp_path: Path, code: int, letter: str) -> None:
    size = struct.calcsize(letter)
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, 2, 3) + struct.pack("<2i2q3q", 1, 2, 0, size, 0, 1, 2)
    assert read(pair(tmp_path, index, struct.pack(f"<3{letter}", 5, 6, 7))) == [[5], [6, 7]]


def test_documents_of_several_sequences_and_of_none(tmp_path: Path) -> None:
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 2, 4) + struct.pack("<2i2q4q", 3, 2, 0, 6, 0, 0, 2, 2)
    assert read(pair(tmp_path, index)) == [[], [301, 65000, 0, 7], []]


@settings(max_examples=30)
@given(
    documents=st.lists(st.lists(st.integers(1, 255), max_size=12), min_size=2, max_size=10),
    block=st.integers(1, 5),
)
def test_prepared_and_exported_again_documents_and_files_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], block: int
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexed_dataset, "BLOCK", block)
        write_indexed(folder / "a.idx", ([np.array([*document, 256])] for document in documents), 257)
        prepare([folder / "a.idx"], folder / "d", ByteTokenizer(), validation_fraction=0.3)
        export_indexed(folder / "d", str(folder / "e"))
        exported = [read(folder / f"e-{split}.idx", 256) for split in SPLITS]
        assert sorted(exported[0] + exported[1]) == sorted(documents)
        assert all(exported)
        train = folder / "e-train.idx"
        write_indexed(folder / "w.idx", ([np.array([*document, 256])] for document in exported[0]), 257)
    for suffix in (".idx", ".bin"):
        assert (folder / "w.idx").with_suffix(suffix).read_bytes() == train.with_suffix(suffix).read_bytes()
    assert len(list(verify(folder / "d"))) == 2


def test_a_missing_end_of_text_is_added_and_text_bytes_are_counted(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    write_indexed(tmp_path / "a.idx", [[np.frombuffer(b"one", np.uint8)], [np.array([*b"three", 256])]], 257)
    report = prepare([tmp_path / "a.idx"], tmp_path / "d", tokenizer)
    data = [TokenDataset.open(tmp_path / "d", split) for split in SPLITS]
    assert sorted(tokenizer.decode(part.tokens(0, len(part)).tolist()) for part in data) == ["one", "three"]
    assert all(part.tokens(len(part) - 1, 1)[0] == 256 for part in data)
    assert sorted(part.text_bytes for part in data) == [3, 5]
    assert (report.documents, report.tokens) == (2, 10)


def test_a_single_document_is_cut(tmp_path: Path) -> None:
    write_indexed(tmp_path / "a.idx", [[np.arange(1, 101), np.array([0])]], 65536)
    report = prepare([tmp_path / "a.idx"], tmp_path / "d", WorldTokenizer(), validation_fraction=0.1)
    data = [TokenDataset.open(tmp_path / "d", split) for split in SPLITS]
    assert [len(part) for part in data] == [91, 11]
    assert report.cut
    assert data[1].tokens(0, 11).tolist() == [*range(91, 101), 0]


HEADER = b"MMIDIDX\0\0"


@pytest.mark.parametrize(
    ("index", "ids", "says"),
    [
        (b"MMIDIDX", IDS, "not an index file"),
        (b"TNTIDX\0\0\0" + INDEX[9:], IDS, "not an index file"),
        (HEADER + struct.pack("<Q", 2) + INDEX[17:], IDS, "version 2"),
        (INDEX[:17] + b"\x06" + INDEX[18:], IDS, "type 6 is not an integer type"),
        (INDEX[:-1], IDS, "take 82 bytes, it has 81"),
        (INDEX + b"\0", IDS, "take 82 bytes, it has 83"),
        (HEADER + struct.pack("<QBQQ", 1, 8, 1 << 62, 3) + INDEX[34:], IDS, "4,611,686,018,427,387,904 sequences"),
        (HEADER + struct.pack("<QBQQ", 1, 8, 0, 6) + INDEX[34:], IDS, "has no documents"),
        (INDEX, IDS[:-1], "take at least 10 bytes, p.bin has 9"),
        (INDEX, IDS + b"\0\0", "take at least 10 bytes, p.bin has 12"),
        (INDEX[:34] + struct.pack("<2i", 3, 1 << 30) + INDEX[42:], IDS, "p.bin has 10"),
        (INDEX[:34] + struct.pack("<2i", 3, -2) + INDEX[42:], IDS, "negative size"),
        (INDEX[:42] + struct.pack("<2q", 0, 4) + INDEX[58:], IDS, "not contiguous"),
        (INDEX[:42] + struct.pack("<2q", 0, -6) + INDEX[58:], IDS, "not contiguous"),
        (INDEX[:58] + struct.pack("<3q", 0, 1, 3), IDS, "do not span"),
        (INDEX[:58] + struct.pack("<3q", 1, 1, 2), IDS, "do not span"),
        (
            HEADER + struct.pack("<QBQQ", 1, 8, 2, 4) + INDEX[34:58] + struct.pack("<4q", 0, 2, 1, 2),
            IDS,
            "not increasing",
        ),
    ],
)
def test_damage_is_one_line_and_costs_no_memory(tmp_path: Path, index: bytes, ids: bytes, says: str) -> None:
    path = pair(tmp_path, index, ids)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=says) as caught:
            IndexedDataset(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokens_of_another_vocabulary_and_missing_files_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = pair(tmp_path)
    with pytest.raises(UserError, match=r"p\.idx: document 1 has the token 301, but the tokenizer has 257 ids"):
        prepare([path], tmp_path / "d", ByteTokenizer())
    write_indexed(tmp_path / "n.idx", [[np.array([-1, 0])], [np.array([1])]], 1 << 17)
    with pytest.raises(UserError, match="has the token -1"):
        prepare([tmp_path / "n.idx"], tmp_path / "d", ByteTokenizer())
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt is text and others are \.idx files"):
        prepare([path, tmp_path / "a.txt"], tmp_path / "d", WorldTokenizer())
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"p\.bin: No such file"):
        prepare([path], tmp_path / "d", WorldTokenizer())
    assert not (tmp_path / "d").exists()


def test_memory_does_not_grow_with_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_indexed(tmp_path / "a.idx", ([np.full(1000, 7), np.array([256])] for _ in range(4000)), 257)
    monkeypatch.setattr(indexed_dataset, "BLOCK", 1 << 12)
    monkeypatch.setattr("goldfinch.data.sources.BATCH_LENGTH", 1 << 15)
    tracemalloc.start()
    try:
        report = prepare([tmp_path / "a.idx"], tmp_path / "d", ByteTokenizer())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.tokens == 4_004_000
    assert peak < 2_500_000


def test_export_overwrites_nothing_unasked(tmp_path: Path) -> None:
    prepare([pair(tmp_path)], tmp_path / "d", WorldTokenizer())
    (tmp_path / "e-validation.bin").write_text("mine")
    with pytest.raises(UserError, match=r"e-validation\.bin exists; choose another prefix or give --overwrite"):
        export_indexed(tmp_path / "d", str(tmp_path / "e"))
    assert (tmp_path / "e-validation.bin").read_text() == "mine"
    assert not (tmp_path / "e-train.idx").exists()
    export_indexed(tmp_path / "d", str(tmp_path / "e"), overwrite=True)
    assert sorted(read(tmp_path / "e-train.idx") + read(tmp_path / "e-validation.idx")) == [[7], [301, 65000]]
