"""Finding files: what names lead to, in which order, and what is passed over."""

import os
import random
from pathlib import Path

import pytest

from goldfinch.data.documents import STANDARD_INPUT, read_documents
from goldfinch.data.find_files import find_text_files
from goldfinch.errors import UserError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.txt", "a/10.txt", "a/b/1.py", "a/.git/x.txt", "a/.hidden", "z[1].txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("text")
    Path("a/b/lines.jsonl").touch()
    Path("a/b/binary").write_bytes(b"\0")
    Path("a/b/link").symlink_to("nowhere")


def found(*names: str) -> list[str]:
    return [str(path) for path in find_text_files(names).paths]


@pytest.mark.usefixtures("tree")
def test_names_lead_to_files_in_order_each_once() -> None:
    assert found("a") == ["a/10.txt", "a/2.txt", "a/b/1.py", "a/b/lines.jsonl"]
    assert find_text_files(["a", "a/b"]).skipped == ["a/b/binary: binary", "a/b/link: not a regular file"]
    assert found("a/b", "-", "a") == ["a/b/1.py", "a/b/lines.jsonl", "-", "a/10.txt", "a/2.txt"]
    assert found("a/*") == found("a")
    assert found("**/*.py", "a/*.txt") == ["a/b/1.py", "a/10.txt", "a/2.txt"]
    assert found(str(Path.cwd() / "a" / "?.txt")) == [str(Path.cwd() / "a" / "2.txt")]
    assert find_text_files(["-"]).paths == [STANDARD_INPUT]


@pytest.mark.usefixtures("tree")
def test_a_file_named_itself_is_taken_as_it_is_named() -> None:
    assert found("z[1].txt", "a/.hidden", "./a/2.txt") == ["z[1].txt", "a/.hidden", "a/2.txt"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a/b/binary", "binary"),
        ("nothing", "does not exist"),
        ("*.rst", r"no text files found in \*.rst"),
        ("a/.git/y", "y"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_text_files(["a", name])


@pytest.mark.usefixtures("tree")
def test_what_is_skipped_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("b/__pycache__").mkdir(parents=True)
    for name in ("b/good.txt", "b/__pycache__/x.pyc", "b/.hidden"):
        Path(name).write_text("text")
    Path("b/empty").touch()
    Path("b/broken.txt").write_bytes("été 日本語 ".encode() * 20 + b"\xff")
    os.mkfifo("b/pipe")
    Path("b/loop").symlink_to(".")
    files = find_text_files(["b"])
    assert files.paths == [Path("b/good.txt")]
    assert sorted(files.skipped) == [
        "b/broken.txt: not valid UTF-8 (byte 320), and its encoding cannot be detected",
        "b/empty: empty",
        "b/loop: a link to a folder, which is not followed",
        "b/pipe: not a regular file",
    ]
    Path("b/good.txt").unlink()
    with pytest.raises(UserError, match=r"no text files found in b: 4 skipped, such as b/loop: a link to a folder"):
        find_text_files(["b"])


@pytest.mark.usefixtures("tree")
def test_gitignore_is_respected_in_folders_but_not_against_what_is_named() -> None:
    for name in ("r/a.txt", "r/b.log", "r/out/c.txt", "r/src/d.txt", "r/src/keep.log", "r/src/data/e.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("text")
    Path("r/.git").mkdir()
    Path("r/.gitignore").write_text("*.log\n/out/\n")
    Path("r/src/.gitignore").write_text("!keep.log\n/data\n")
    files = find_text_files(["r"])
    assert list(map(str, files.paths)) == ["r/a.txt", "r/src/d.txt", "r/src/keep.log"]
    assert sorted(map(str, files.ignored)) == ["r/b.log", "r/out", "r/src/data"]
    assert found("r/src") == ["r/src/d.txt", "r/src/keep.log"]
    assert found("r/out", "r/b.log", "r/*.log") == ["r/out/c.txt", "r/b.log"]
    Path("r/src/d.txt").unlink()
    Path("r/src/keep.log").unlink()
    with pytest.raises(UserError, match=r"no text files found in r/src: 1 excluded by \.gitignore"):
        find_text_files(["r/src"])


@pytest.mark.usefixtures("tree")
def test_patterns_include_and_exclude_files() -> None:
    def paths(*names: str, **patterns: list[str]) -> list[str]:
        return [str(path) for path in find_text_files(names, **patterns).paths]

    assert paths("a", include=["*.txt"]) == ["a/10.txt", "a/2.txt"]
    assert paths("a", exclude=["*.txt", "*.jsonl"]) == ["a/b/1.py"]
    assert paths("a", include=["*.txt", "*.py"], exclude=["b/"]) == ["a/10.txt", "a/2.txt"]
    assert paths("a/2.txt", "a/b/1.py", "a/*", exclude=["*.py"]) == ["a/2.txt", "a/10.txt", "a/b/lines.jsonl"]
    with pytest.raises(UserError, match=r"no text files found in a: 6 excluded by --include or --exclude"):
        paths("a", include=["*.rs"])
    with pytest.raises(UserError, match="all of those named are excluded"):
        paths("a/2.txt", exclude=["*.txt"])


SENTENCES = {
    "cp1252": "Le garçon a mangé à l'hôtel, où il était très fatigué.",
    "cp1251": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "gb18030": "我们的文字在这里。今天天气很好。",
    "utf-16": "any text with a byte order mark, 日本語",
    "utf-32": "any text with a byte order mark, 日本語",
}


@pytest.mark.parametrize("encoding", SENTENCES)
@pytest.mark.parametrize("ascii_before", [0, 3_000_000])
def test_other_encodings_are_detected(encoding: str, ascii_before: int, tmp_path: Path) -> None:
    text = "plain words " * (ascii_before // 12) + SENTENCES[encoding]
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    files = find_text_files([str(path)])
    assert files.encodings == {path: encoding}
    assert "".join(document.text for document in read_documents(files.paths, encodings=files.encodings)) == text


def test_an_encoding_that_is_given_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"a\.txt is binary; give its --encoding if it is text"):
        find_text_files([str(path)])
    assert find_text_files([str(path)], encoding="utf-16-le").encodings == {path: "utf-16-le"}
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not valid ascii \(byte 3\)"):
        find_text_files([str(path)], encoding="ascii")
    for unknown in ("klingon", "base64", "a\0"):
        with pytest.raises(UserError, match="unknown --encoding"):
            find_text_files([str(path)], encoding=unknown)


def test_binary_files_without_zeros_are_not_read_as_some_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(bytes(random.Random(0).choices(range(1, 256), k=5000)))
    with pytest.raises(UserError, match="its encoding cannot be detected"):
        find_text_files([str(path)])
