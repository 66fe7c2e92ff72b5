"""Reading documents: what is kept, what is skipped and said, what is refused."""

import gzip
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from goldfinch.data import documents as documents_module
from goldfinch.data.documents import STANDARD_INPUT, input_bytes, read_documents
from goldfinch.errors import UserError


def json_lines(path: Path, texts: Iterable[str]) -> Path:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def texts_of(*paths: Path, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(paths, text_field)]


def test_each_kind_of_file_gives_its_documents_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfone\r\nfile")
    (tmp_path / "b.md").write_text("# two", encoding="utf-8")
    lines = json_lines(tmp_path / "c.jsonl", ["three", "nul \0 é"])
    packed = json_lines(tmp_path / "d.jsonl.gz", ["five"])
    parquet.write_table(pyarrow.table({"text": ["six", "seven"], "n": [1, 2]}), tmp_path / "e.parquet")
    paths = [tmp_path / "a.TXT", tmp_path / "b.md", lines, packed, tmp_path / "e.parquet"]
    documents = list(read_documents(paths))
    assert [d.text for d in documents] == ["one\r\nfile", "# two", "three", "nul \0 é", "five", "six", "seven"]
    assert [Path(d.source).name for d in documents[:3]] == ["a.TXT", "b.md", "c.jsonl"]
    positions = [d.position for d in documents]
    assert positions == sorted(positions)
    assert positions[-1] == input_bytes(paths)


def test_text_of_any_kind_and_standard_input_are_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("code")
    paths = [STANDARD_INPUT, json_lines(tmp_path / "b.jsonl", ["one", "two"]), tmp_path / "a.py"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    documents = list(read_documents(paths))
    assert [document.text for document in documents] == ["piped", "one", "two", "code"]
    names = [Path(document.name).name for document in documents]
    assert names == ["standard input", "b.jsonl:1", "b.jsonl:2", "a.py"]


def test_bad_lines_are_reported_with_place_and_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b'{"body": "other field"}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b"[1]",
        b'{"text": ""}',
        b'{"text": "\\ud800"}',
        b"",
        b"[" * 100_000,
        b'{"text": "good too"}',
    ]
    path.write_bytes(b"\n".join(lines))
    reports: list[str] = []
    assert [d.text for d in read_documents([path], on_error=reports.append)] == ["good", "good too"]
    reasons = dict(report.removeprefix(f"{path}:").split(": ", 1) for report in reports)
    assert list(reasons) == ["2", "3", "4", "5", "6", "7", "8", "10"]
    assert reasons["3"] == "no field 'text'"
    assert reasons["4"] == "'text' is not a string but int"
    assert reasons["5"] == "not UTF-8"
    assert "surrogate" in reasons["8"]
    with pytest.raises(UserError, match=r"x\.jsonl:2: not JSON"):
        list(read_documents([path]))


def test_bad_rows_of_parquet_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", None, "", "b"]}), path)
    reports: list[str] = []
    assert [d.text for d in read_documents([path], "body", reports.append)] == ["a", "b"]
    assert reports == [f"{path}:2: 'body' is not a string but NoneType", f"{path}:3: 'body' is empty"]
    with pytest.raises(UserError, match="no column 'text' but body; give --text-field"):
        list(read_documents([path]))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\xef\xbb\xbf", "empty"),
        ("a.txt", b"PK\0\1", "is not text; give its --encoding"),
        ("a.txt", "café".encode("latin-1"), "not UTF-8; give its --encoding"),
        ("a.txt", b"ends in half a character \xe2\x82", "not UTF-8; give its --encoding"),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50, mtime=0)[:-12], "cannot read"),
        ("a.parquet", b"not parquet", "not a readable parquet file"),
    ],
    ids=["empty", "empty-bom", "binary", "latin-1", "cut-text", "not-gzip", "cut-gzip", "not-parquet"],
)
def test_files_that_cannot_be_read_are_refused_by_name(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        texts_of(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_paths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    good = json_lines(tmp_path / "a.jsonl", ["text"])
    for bad, says in ((tmp_path / "b.jsonl", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(UserError, match=says):
            read_documents([good, bad])
    with pytest.raises(UserError, match="no files"):
        read_documents([])


@given(text=st.text(st.sampled_from("ab\n\r€👍"), min_size=1, max_size=60))
def test_long_documents_come_in_pieces_that_join_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "a.txt").write_bytes(text.encode())
    lines = json_lines(folder / "b.jsonl", [text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "MAX_PIECE_CHARACTERS", 8)
        documents = list(read_documents([folder / "a.txt", lines]))
    half = len(documents) // 2
    for pieces in (documents[:half], documents[half:]):
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.continues for piece in pieces] == [True] * (half - 1) + [False]
        assert all(1 <= len(piece.text) <= 8 for piece in pieces)
        # A line that fits in a piece is cut only where a piece could not hold more.
        assert all(piece.text.endswith("\n") or "\n" not in piece.text for piece in pieces[:-1])


def test_other_encodings_are_read_as_they_are_given(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_bytes("Größe\n".encode("utf-16"))
    lines.write_bytes('{"text": "naïve"}\n'.encode("latin-1"))
    encodings = {text: "utf-16", lines: "latin-1"}
    assert [document.text for document in read_documents([text, lines], encodings=encodings)] == ["Größe\n", "naïve"]
