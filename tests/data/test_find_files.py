"""Finding files: what names lead to, in which order, and what is passed over."""

from pathlib import Path

import pytest

from goldfinch.data.documents import STANDARD_INPUT
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
    assert find_text_files(["a", "a/b"]).num_skipped == 2
    assert found("a/b", "-", "a") == ["a/b/1.py", "a/b/lines.jsonl", "-", "a/10.txt", "a/2.txt"]
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
