"""Asking a context file, and writing on from it."""

import shutil
from pathlib import Path

import pytest

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.context_file import read_description

TEXT = "The whale swims past the ship.\n"
SHORT = ["--max-tokens", "6", "--seed", "1"]


@pytest.fixture
def book(small_run, goldfinch):
    """The file book.gfc, beside the folder of its model."""
    Path("book.txt").write_text(TEXT)
    goldfinch("read", "book.txt", "-m", small_run, "-o", "book.gfc")
    return Path("book.gfc")


def text_in(path):
    context = gf.load("run").open(path)
    return ByteTokenizer().decode(context.ids())


def test_an_answer_leaves_the_file_as_it_is(book, goldfinch):
    before = book.read_bytes()
    first = goldfinch("ask", book, "Where?", *SHORT)
    assert goldfinch("ask", book, "Where?", *SHORT).out == first.out
    assert goldfinch("ask", book, "Where?", *SHORT, "--cache-budget", "0").out == first.out
    assert book.read_bytes() == before
    opened, written = first.err.splitlines()
    assert f"book.gfc: {len(TEXT)} tokens; keys and values kept (" in opened
    assert "tokens in" in written


def test_the_answer_is_what_the_model_writes_after_the_question(book, goldfinch):
    context = gf.load("run").open(book)
    settings = {"seed": 1, "temperature": 0.0, "presence_penalty": 0.3, "frequency_penalty": 0.3}
    pieces = context.generate("\nUser: Where?\n\nAssistant:", max_tokens=6, stop=["\n\n"], **settings)
    expected = "".join(pieces).lstrip() + "\n"
    assert goldfinch("ask", book, "Where?", *SHORT, "--temperature", "0").out == expected


def test_keeping_adds_question_and_answer_for_the_next_question(book, goldfinch):
    answer = goldfinch("ask", book, "Where?", *SHORT, "--keep").out
    kept = text_in(book)
    assert kept.startswith(f"{TEXT}\nUser: Where?\n\nAssistant:")
    assert kept.endswith("\n\n")
    assert answer.strip() in kept
    assert read_description(book).documents[0].stop == len(TEXT)
    goldfinch("ask", book, "When?", *SHORT, "--keep")
    assert text_in(book).startswith(f"{kept}User: When?\n\nAssistant:")


def test_plain_goes_on_from_the_text_as_it_is(book, goldfinch):
    goldfinch("ask", book, "It is", *SHORT, "--plain", "--keep")
    assert text_in(book).startswith(f"{TEXT}It is")


def test_file_and_model_may_move_together(book, goldfinch, monkeypatch):
    before = goldfinch("ask", book, "Where?", *SHORT).out
    Path("elsewhere").mkdir()
    for name in ("run", "book.gfc"):
        shutil.move(name, f"elsewhere/{name}")
    assert goldfinch("ask", "elsewhere/book.gfc", "Where?", *SHORT).out == before
    shutil.move("elsewhere/run", "run")
    error = goldfinch("ask", "elsewhere/book.gfc", "Where?", *SHORT, code=2).err
    assert str(Path("elsewhere/run")) in error
    assert "-m" in error
    assert goldfinch("ask", "elsewhere/book.gfc", "Where?", *SHORT, "-m", "run").out == before


def test_a_question_comes_from_standard_input(book, goldfinch, monkeypatch):
    expected = goldfinch("ask", book, "Where?", *SHORT).out
    monkeypatch.setattr("sys.stdin.read", lambda: "Where?", raising=False)
    assert goldfinch("ask", book, "-", *SHORT).out == expected


def test_generate_goes_on_from_the_files_text(book, goldfinch):
    before = book.read_bytes()
    with_prompt = goldfinch("generate", "run", TEXT, *SHORT).out
    assert TEXT + goldfinch("generate", book, *SHORT).out == with_prompt
    assert goldfinch("generate", book, "And", *SHORT).out.startswith("And")
    assert book.read_bytes() == before


def test_chat_comes_after_the_files_text(book, goldfinch, monkeypatch):
    before = book.read_bytes()
    lines = iter(["Where?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    asked = goldfinch("ask", book, "Where?", *SHORT).out
    assert asked.strip() in goldfinch("chat", book, *SHORT).out
    assert book.read_bytes() == before


def test_mistakes_are_answered_with_the_remedy(book, small_run, goldfinch):
    cases = {
        ("ask", "nothing.gfc", "Where?"): "nothing.gfc",
        ("ask", "book.txt", "Where?"): "book.txt is no whole context file",
        ("ask", book, ""): "question is empty",
        ("ask", book): "goldfinch ask --help",
        ("ask", book, "Where?", "--cache-budget", "much"): "2GiB",
        ("generate", small_run, "x", "--cache-budget", "-1"): "2GiB",
        ("generate", small_run, "x", "-m", small_run): "leave out -m",
        ("generate", small_run): "prompt is empty",
        ("generate", book, "--dtype", "bfloat16"): "--dtype float32",
    }
    for args, remedy in cases.items():
        error = goldfinch(*args, code=2).err
        assert remedy in error, args
        assert error.splitlines()[-1].startswith("goldfinch: ")
