"""What a terminal, a file or a narrow encoding gets to see of texts that files and models hold."""

import io
import json
import sys

import pytest

from goldfinch.cli.main import run
from goldfinch.cli.terminal import visible

NASTY = "a\x1b[31mred\x07 \x9b2J \u202e.\n"
SHOWN = "a\\x1b[31mred\\x07 \\x9b2J \\u202e.\n"


@pytest.fixture
def terminal(monkeypatch):
    """terminal() makes standard output a terminal."""
    return lambda: monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)


@pytest.fixture
def book(small_run, goldfinch, tmp_path):
    (tmp_path / "na\x1b[1mme.txt").write_text(NASTY, newline="")
    goldfinch("read", "na\x1b[1mme.txt", "-m", small_run, "-o", "book.gfc")
    return "book.gfc"


def test_a_file_or_pipe_gets_every_character(book, goldfinch):
    assert goldfinch("cache", "cat", book).out == NASTY + "\n"
    assert "\x1b[31mred" in goldfinch("cache", "grep", book, "red").out


def test_a_terminal_gets_no_control_characters_of_a_text(book, goldfinch, monkeypatch, terminal):
    terminal()
    assert goldfinch("cache", "cat", book).out == SHOWN + "\n"
    monkeypatch.setenv("TERM", "dumb")
    for args in (["cache", "grep", book, "red"], ["cache", "info", book]):
        out = goldfinch(*args).out
        assert ("\\x1b[" if args[1] == "grep" else "na\ufffd[1mme.txt") in out
        assert "\x1b" not in out


def test_a_terminal_gets_no_control_characters_of_a_prompt_or_a_model(small_run, goldfinch, terminal):
    terminal()
    bias = [word for byte in (27, 155) for word in (f"{byte}=1000",)]
    out = goldfinch("generate", small_run, NASTY, "--max-tokens", "4", "--logit-bias", *bias).out
    assert out.startswith(SHOWN)
    assert "\x1b" not in out
    out = goldfinch("generate", small_run, NASTY, "--max-tokens", "4", "--logit-bias", *bias, "--json").out
    assert not set("\x1b\x9b\u202e") & set(out)
    assert json.loads(out)["prompt"] == NASTY


def test_visible_leaves_ordinary_text_alone():
    text = "Zeilen\n\tund Ümläute, 日本語 🐳\n"
    assert visible(text) == text
    assert visible("one\r\ntwo\rthree") == "one\ntwo\\x0dthree"


def test_characters_that_the_encoding_of_the_output_lacks_are_replaced(small_run, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run(["generate", small_run, "日本 and on", "--max-tokens", "3", "--seed", "0"]) == 0
    sys.stdout.flush()
    assert written.getvalue().startswith(b"?? and on")


def test_nothing_is_printed_before_the_model_has_begun(small_run, goldfinch, tmp_path):
    (tmp_path / small_run / "tokenizer.json").unlink()
    assert goldfinch("generate", small_run, "Call me", code=2).out == ""


def test_an_error_is_one_line_whatever_a_name_holds(goldfinch):
    assert goldfinch("chat", "two\nlines", code=2).err == "goldfinch: two\\nlines does not exist\n"
