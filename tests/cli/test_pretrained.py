"""Models that come with the package, by name, wherever a command takes a model; here a small one called "small"."""

import io
import shutil
from pathlib import Path

import pytest

import goldfinch as gf
from goldfinch import pretrained


@pytest.fixture
def package(small_run, tmp_path, monkeypatch):
    """The folder of pretrained models, with one in it; the working directory is another one, and empty."""
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    package.mkdir()
    elsewhere.mkdir()
    Path(small_run).rename(package / "small")
    monkeypatch.setattr(pretrained, "FOLDER", package)
    monkeypatch.chdir(elsewhere)
    return package


@pytest.fixture
def book(package, goldfinch):
    """book.gfc, which the pretrained model has read."""
    Path("book.txt").write_text("The whale swims past the ship.")
    goldfinch("read", "book.txt", "-m", "small", "-o", "book.gfc")
    return Path("book.gfc")


def test_it_is_loaded_by_its_name(package):
    lm = gf.load("small")
    assert lm.folder == package / "small"
    assert lm.generate("The whale", max_tokens=3).finish_reason == "length"


COMMANDS = [
    "generate small whale --max-tokens 2",
    "chat small --plain --max-tokens 2",
    "info small",
    "evaluate small book.txt",
    "bench memory small --json",
    "convert small -o small.pth",
    "experiment position small --text book.txt --length 8 -o position",
    "ask book.gfc -m small --plain whale --max-tokens 2",
    "cache verify book.gfc -m small",
    "cache grep book.gfc whale -m small",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_model_takes_its_name(command, book, goldfinch, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The whale"))
    assert goldfinch(*command.split()).out


def test_the_list_of_presets_names_it(package, goldfinch):
    assert "Trained models that come with GoldFinch: small\n" in goldfinch("info").out


def test_training_starts_from_it_by_its_name(book, data, goldfinch):
    goldfinch(
        *f"train --initial small --data {data} -o run --steps 1 --batch-size 1 --sequence-length 8".split(),
        *["--sample-every", "0", "--max-validation-tokens", "8"],
    )
    assert gf.load("run").config == gf.load("small").config


def test_a_folder_of_that_name_comes_first(package, goldfinch):
    shutil.copytree(package / "small", "small")
    assert gf.load("small").folder == Path("small")
    assert "parameters" in goldfinch("info", "small").out


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_something_else_of_that_name_is_refused(make, package, goldfinch):
    make(Path("small"))
    message = "small is not a model folder, and hides the model of that name"
    with pytest.raises(gf.UserError, match=message):
        gf.load("small")
    assert message in goldfinch("read", "x", "-m", "small", "-o", "x.gfc", code=2).err
    assert message in goldfinch("info", "small", code=2).err


def test_a_misspelt_name_is_answered_with_the_right_one(package, goldfinch):
    assert "smal does not exist; did you mean small?" in goldfinch("chat", "smal", code=2).err


def test_a_context_file_finds_it_wherever_either_of_them_moves(book, package, tmp_path, monkeypatch, goldfinch):
    moved = tmp_path / "other machine"
    shutil.move(package, moved / "site-packages")
    monkeypatch.setattr(pretrained, "FOLDER", moved / "site-packages")
    book.rename(moved / "book.gfc")
    monkeypatch.chdir(moved)
    assert goldfinch("ask", "book.gfc", "--plain", " The", "--max-tokens", "2").out
    assert "site-packages/small" in goldfinch("cache", "info", "book.gfc").out
