"""Asking a context file, and writing on from it."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import goldfinch as gf
from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.context_file.description import read_description

TEXT = "The whale swims past the ship.\n"
SHORT = ["--max-tokens", "6", "--seed", "1"]


@pytest.fixture
def book(small_run, goldfinch):
    """The file book.gfc, next to the folder of its model."""
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
    assert f"book.gfc: {len(TEXT)} tokens; cache level keys_values (" in opened
    assert "6 tokens, " in written


def test_the_answer_is_what_the_model_writes_after_the_question(book, goldfinch):
    context = gf.load("run").open(book)
    settings = {"seed": 1, "temperature": 0.0, "presence_penalty": 0.3, "frequency_penalty": 0.3}
    settings |= {"penalty_decay": 0.996, "stop": "\n\n"}
    generation = context.generate("\nUser: Where?\n\nAssistant:", max_tokens=6, **settings)
    expected = generation.text.removeprefix(" ") + "\n"
    assert goldfinch("ask", book, "Where?", *SHORT, "--temperature", "0").out == expected


def test_keeping_adds_question_and_answer_for_the_next_question(book, goldfinch):
    asked = goldfinch("ask", book, "Where?", *SHORT, "--keep")
    assert "questions and answers are now part of book.gfc" in asked.err
    answer = asked.out
    kept = text_in(book)
    assert kept.startswith(f"{TEXT}\nUser: Where?\n\nAssistant:")
    assert answer.strip() in kept
    assert read_description(book).documents[0].stop == len(TEXT)
    goldfinch("ask", book, "When?", *SHORT, "--keep")
    assert text_in(book).startswith(kept.rstrip("\n") + "\n\nUser: When?\n\nAssistant:")


def test_plain_continues_the_text_as_it_is(book, goldfinch):
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


def test_without_a_question_several_are_answered(book, goldfinch, monkeypatch):
    before = book.read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\nWhen?\n"))
    chat = goldfinch("chat", book, *SHORT).out
    for keep in ([], ["--keep"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("Where?\nWhen?\n"))
        assert goldfinch("ask", book, *SHORT, *keep).out == chat
        assert (book.read_bytes() == before) == (not keep)
    kept = text_in(book)
    assert "User: Where?" in kept
    assert "User: When?" in kept
    assert "--json needs a question" in goldfinch("ask", book, "--json", code=2).err


def test_generate_continues_the_files_text(book, goldfinch):
    before = book.read_bytes()
    with_prompt = goldfinch("generate", "run", TEXT, *SHORT).out
    assert TEXT + goldfinch("generate", book, *SHORT).out == with_prompt
    assert goldfinch("generate", book, "And", *SHORT).out.startswith("And")
    assert book.read_bytes() == before


def test_chat_comes_after_the_files_text(book, goldfinch, monkeypatch):
    before = book.read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\n"))
    asked = goldfinch("ask", book, "Where?", *SHORT).out
    assert asked.strip() in goldfinch("chat", book, *SHORT).out
    assert book.read_bytes() == before


def test_mistakes_are_answered_with_the_remedy(book, small_run, goldfinch):
    cases = {
        ("ask", "nothing.gfc", "Where?"): "nothing.gfc",
        ("ask", "book.txt", "Where?"): "book.txt is not a .gfc context file",
        ("ask", book, ""): "question is empty",
        ("ask", book, "Where?", "--cache-budget", "much"): "2GiB",
        ("generate", small_run, "x", "--cache-budget", "-1"): "2GiB",
        ("generate", small_run, "x", "-m", small_run): "omit -m",
        ("generate", small_run): "prompt is empty",
        ("generate", book, "--dtype", "bfloat16"): "--dtype float32",
    }
    for args, remedy in cases.items():
        error = goldfinch(*args, code=2).err
        assert remedy in error, args
        assert error.splitlines()[-1].startswith("goldfinch: ")


@pytest.fixture
def run_with_positions(small_config, small_model, tmp_path, monkeypatch):
    """The folder "turned" with a model trained with positions, their base no usual one."""
    monkeypatch.chdir(tmp_path)
    config = small_config("finch_c2", "gold", vocab_size=257, rope=RopeConfig(base=500.0))
    save_description(tmp_path / "turned", config, ByteTokenizer())
    save_weights(tmp_path / "turned", small_model(config, torch.float32).state_dict())
    return "turned"


def test_positions_are_changed_for_one_command_and_the_rest_of_them_stays(goldfinch, run_with_positions):
    Path("book.txt").write_text("The whale swims past the ship. " * 20)
    assert goldfinch("read", "book.txt", "-m", run_with_positions, "-o", "book.gfc").out
    command = ("generate", "book.gfc", "The", "--seed", "0", "--max-tokens", "20")
    lm = gf.load(run_with_positions, rope=RopeConfig(base=500.0, rescale=4.0))
    expected = lm.open("book.gfc").generate("The", max_tokens=20, seed=0, temperature=0.8, top_p=0.9)
    turned = goldfinch(*command, "--rope", "rescale=4").out
    assert turned == "The" + expected.text + "\n"
    assert turned != goldfinch(*command).out
    assert (
        goldfinch("ask", "book.gfc", "The", *SHORT).out
        != goldfinch("ask", "book.gfc", "The", *SHORT, "--rope", "rebase=9").out
    )
    goldfinch("read", "book.txt", "-m", run_with_positions, "-o", "again.gfc", "--rope", "rescale=4")
    stored, again = load_file("book.gfc"), load_file("again.gfc")
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())


def test_positions_that_cannot_be_changed_are_refused(goldfinch, run_with_positions, small_run):
    cases = {
        ("generate", small_run, "x", "--rope", "rescale=4"): "trained without rotary positions",
        ("generate", run_with_positions, "x", "--rope", "none"): "positions can be changed, not removed",
        ("generate", run_with_positions, "x", "--rope", "rescal=4"): "did you mean rescale",
        ("generate", run_with_positions, "x", "--rope", "rescale=no"): "rope.rescale must be a number",
        ("generate", run_with_positions, "x", "--rope", "4"): "rope.4",
    }
    for args, answer in cases.items():
        assert answer in goldfinch(*args, code=2).err, args


def test_all_commands_agree_on_the_bytes_of_a_token(book, small_run, goldfinch):
    shown = json.loads(goldfinch("info", small_run, "--json").out)["cache_bytes_per_token"]
    assert f"{shown} bytes per token" in goldfinch("read", "book.txt", "-m", small_run, "-o", "again.gfc").out
    stored = json.loads(goldfinch("cache", "info", book, "--json").out)
    checksum_of_one_block = 8
    assert shown == (stored["bytes"]["key_cache"] - checksum_of_one_block) / stored["num_tokens"]


@pytest.mark.slow
def test_of_several_processes_that_append_to_one_file_none_loses_a_document(book):
    """Each either adds its document, or says that the file has changed."""
    for name in ("b.txt", "c.txt", "d.txt"):
        Path(name).write_text(f"A document called {name}.")
    append = [sys.executable, "-m", "goldfinch", "read", "-m", "run", "-o", "book.gfc", "--append"]
    writers = {
        name: subprocess.Popen([*append, name], stderr=subprocess.PIPE, text=True)
        for name in ("b.txt", "c.txt", "d.txt")
    }
    ended = {name: (process.communicate()[1], process.returncode) for name, process in writers.items()}
    added = {name for name, (_, code) in ended.items() if code == 0}
    assert added
    assert {document.name for document in read_description(book).documents} == {"book.txt", *added}
    for message, code in ended.values():
        assert code == 0 or (code == 2 and "another process has written" in message)


def test_a_file_name_that_cannot_be_shown_is_a_document_all_the_same(small_run, goldfinch):
    name = "na\x1bme \udcff.txt"  # a control character, and a byte that is not UTF-8
    Path(name).write_text(TEXT)
    goldfinch("read", name, "-m", small_run, "-o", "book.gfc")
    assert [document.name for document in read_description(Path("book.gfc")).documents] == ["na\ufffdme \ufffd.txt"]
