"""Compiled libraries are cached, and a cached one is loaded only if it is certainly the one that was compiled."""

import os
import shutil
import subprocess

import pytest

from goldfinch.cpu import build

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not any(map(shutil.which, build.COMPILERS)), reason="no C++ compiler"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of libraries, empty, and not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache with spaces"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache with spaces" / "goldfinch"


@pytest.fixture
def answer(tmp_path, cache, monkeypatch):
    """What a function of a small library returns, as a new process would find it; and how often it is compiled."""
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    compiled = []
    real = build._build
    monkeypatch.setattr(build, "_build", lambda *arguments: (compiled.append(1), real(*arguments))[1])

    def call():
        # Without the cache of loaded libraries, and not the file that this process has open already.
        compiled.clear()
        library = build.compiled.__wrapped__(source, "The Answer")
        return library.answer(), len(compiled)

    return call


def only(folder):
    (library,) = folder.iterdir()
    return library


def damage_by_a_bit(library, planted):
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.unlink()
    library.write_bytes(content)
    library.chmod(0o700)


def cut_off(library, planted):
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(content[:1000])
    library.chmod(0o700)


def plant(library, planted):
    library.unlink()
    shutil.copy(planted, library)


def let_others_write(library, planted):
    library.chmod(0o777)


def replace_by_a_link(library, planted):
    library.unlink()
    library.symlink_to(planted)


@pytest.fixture
def planted(tmp_path):
    """A library that answers wrongly."""
    source = tmp_path / "planted.cpp"
    source.write_text('extern "C" int answer() { return 666; }')
    compiler = next(filter(shutil.which, build.COMPILERS))
    subprocess.run([compiler, "-fPIC", "-shared", "-o", tmp_path / "planted.so", source], check=True)
    return tmp_path / "planted.so"


def test_a_library_is_compiled_once_into_a_private_folder(answer, cache):
    assert answer() == (42, 1)
    assert answer() == (42, 0)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert only(cache).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", [damage_by_a_bit, cut_off, plant, let_others_write, replace_by_a_link])
def test_a_library_that_is_not_the_compiled_one_is_compiled_again(spoil, answer, cache, planted, caplog):
    answer()
    spoil(only(cache), planted)
    assert answer() == (42, 1)
    assert "is damaged or not ours: compiling it again" in caplog.text
    assert answer() == (42, 0)


def test_nothing_is_believed_in_a_folder_that_others_could_write_to(answer, cache, planted, caplog):
    answer()
    stem, _, _ = only(cache).stem.rpartition("-")
    (cache / f"{stem}-{build._checksum(planted)}.so").write_bytes(planted.read_bytes())  # with the right checksum
    cache.chmod(0o777)
    assert answer() == (42, 1)
    assert "other users could write" in caplog.text
    assert cache.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_of_ones_own_libraries_are_compiled_for_this_process(answer, cache, monkeypatch, caplog):
    cache.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    assert answer() == (42, 1)
    assert not list(cache.iterdir())
    assert "compiled again in each process" in caplog.text
