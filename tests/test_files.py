"""A reader sees the old content or the new one, never half of either."""

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from goldfinch.errors import UserError
from goldfinch.files import FileVersion, atomic_directory, atomic_file, read_unchanged, remove_abandoned, write_text


class Killed(BaseException):
    """As KeyboardInterrupt: no `except Exception` sees it."""


@pytest.fixture
def umask():
    """A strict umask for the time of one test."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def write_half(path, error):
    path.write_bytes(b"half")
    raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_new_after_the_block_and_not_before(tmp_path):
    path = tmp_path / "new" / "deep" / "file"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"content")
        assert not path.exists()
        assert temporary.parent.parent == path.parent, "a rename across file systems is not atomic"
    assert path.read_bytes() == b"content"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, Killed])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_is_as_it_was_when_the_block_raises(error, old, tmp_path):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), atomic_file(path) as temporary:
        write_half(temporary, error)
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, size, done = tmp_path / "file", 200_000, threading.Event()
    write_text(path, "a" * size)
    seen = set()

    def read():
        while not done.is_set():
            seen.add(path.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in "bcdefghij":
        write_text(path, letter * size)
    done.set()
    reader.join()
    assert seen <= {letter * size for letter in "abcdefghij"}


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "file", "é\n你好\n")
    assert (tmp_path / "file").read_bytes() == "é\n你好\n".encode()


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.usefixtures("umask")
def test_permissions_are_those_of_any_new_file(tmp_path):
    with atomic_file(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "inside").write_text("x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o640, "folder": 0o750, "inside": 0o640}


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("x")
        assert not path.exists()
    assert (path / "sub" / "file").read_text() == "x"
    assert names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_a_directory_is_not_there_when_the_block_raises(error, tmp_path):
    with pytest.raises(error), atomic_directory(tmp_path / "folder") as temporary:
        write_half(temporary / "file", error)
    assert names(tmp_path) == []


def test_a_directory_that_exists_is_not_touched(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(FileExistsError, match="folder exists"), atomic_directory(tmp_path / "folder"):
        pytest.fail("the block must not run")
    assert (tmp_path / "folder" / "old").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [None, ValueError, Killed])
def test_a_directory_is_replaced_only_by_a_whole_one(error, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(error) if error else contextlib.nullcontext():  # noqa: SIM117 (the order matters)
        with atomic_directory(tmp_path / "folder", replace=True) as temporary:
            (temporary / "new").write_text("new")
            assert names(tmp_path / "folder") == ["old"]
            if error:
                raise error
    assert names(tmp_path / "folder") == (["old"] if error else ["new"])
    assert names(tmp_path) == ["folder"]


def test_a_link_given_as_output_is_followed(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    for target in ("real.txt", "not there yet.txt"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / target)
        write_text(link, "new")
        assert link.is_symlink()
        assert (tmp_path / target).read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "not a regular file"), ("folder", "a folder"), ("link", "not a regular file")):
        with pytest.raises(UserError, match=f"{name} is {kind}: give the name of a file to write"):
            write_text(tmp_path / name, "new")
    with pytest.raises(UserError, match="null is not a regular file"):
        write_text(Path("/dev/null"), "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_only_the_expected_version_is_replaced(tmp_path):
    path = tmp_path / "a"
    for expected in (None, FileVersion.of(path)):
        with atomic_file(path, expected) as temporary:
            temporary.write_text("first")
        path.unlink()
    path.write_text("mine")
    mine = FileVersion.of(path)
    write_text(path, "theirs")
    for expected in (None, mine):
        with (
            pytest.raises(UserError, match=r"another process has written .*a in the meantime, and it was not replaced"),
            atomic_file(path, expected) as temporary,
        ):
            temporary.write_text("mine again")
    assert path.read_text() == "theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_someone_else_has_written_meanwhile_stays(tmp_path):
    def write():
        with atomic_directory(tmp_path / "a") as new:
            (new / "mine").touch()
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "theirs").touch()

    with pytest.raises(UserError, match="in the meantime, and it was not replaced"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "theirs"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_writer_left_goes_with_the_next_one(kind, tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from goldfinch.files import atomic_{kind}
with atomic_{kind}(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "a"], check=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    atomic = {"file": atomic_file, "directory": atomic_directory}[kind]
    with atomic(tmp_path / "a") as slow:
        assert len(list(tmp_path.iterdir())) == 1
        remove_abandoned(tmp_path / "a")  # as any other writer does first: a slow one is not taken for killed
        assert slow.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_many_writers_of_one_file_do_not_remove_what_the_others_are_writing(tmp_path):
    def write(number):
        for _ in range(30):
            write_text(tmp_path / "a", str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_to_itself_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="loop is a link that leads back to itself"):
        write_text(loop, "new")
    with pytest.raises(UserError, match="loop is a link that leads back to itself"), atomic_directory(loop):
        pass


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    replacements = iter(["newer", "newest text"])

    def read():
        first = path.read_text()
        for text in replacements:
            write_text(path, text)
            raise UserError("a mixture of two versions")
        return first

    assert read_unchanged(path, read) == "newest text"


def test_a_file_that_is_refused_as_it_is_is_read_once(tmp_path):
    calls = []

    def read():
        calls.append(1)
        raise UserError("corrupt")

    with pytest.raises(UserError, match="corrupt"):
        read_unchanged(tmp_path / "missing", read)
    assert len(calls) == 1
