"""Reading files into a context file: what is found, how it is remembered, what is refused."""

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import goldfinch as gf
from goldfinch.cli import progress
from goldfinch.data import documents as documents_module
from goldfinch.inference.context_file.description import read_description

END_OF_TEXT = 256


@pytest.fixture
def read(small_run, goldfinch):
    """read(*args, code=0) runs `goldfinch read` with the small model and book.gfc."""
    return lambda *args, code=0: goldfinch("read", *args, "-m", small_run, "-o", "book.gfc", code=code)


def written():
    """What book.gfc holds: name -> text of each document, and all ids."""
    context = gf.load("run").open("book.gfc")
    texts = {d.name: bytes(context.ids(d.start, d.stop)).decode() for d in context.documents}
    assert len(texts) == len(context.documents)
    return texts, context.ids()


def test_documents_keep_their_names_and_boundaries(read):
    Path("a.txt").write_text("first")
    Path("b.py").write_text("code = 1\n")
    Path("c.jsonl").write_text('{"text": "one"}\n{"text": 2}\n\n{"text": "four"}\n')
    captured = read("b.py", "a.txt", "c.jsonl")
    texts, ids = written()
    assert texts == {"b.py": "code = 1\n", "a.txt": "first", "c.jsonl:1": "one", "c.jsonl:4": "four"}
    assert list(texts) == ["b.py", "a.txt", "c.jsonl:1", "c.jsonl:4"]
    separated = b"\0".join(text.encode() for text in texts.values())
    assert bytes(0 if id == END_OF_TEXT else id for id in ids) == separated
    assert "skipped c.jsonl:2: 'text' is not a string but int" in captured.err
    assert f"{len(ids):,} tokens of 4 documents" in captured.out


def test_a_long_document_in_pieces_is_one_document(read, monkeypatch):
    monkeypatch.setattr(documents_module, "MAX_PIECE_CHARACTERS", 16)
    text = "".join(f"line {number}\n" for number in range(20))
    Path("long.txt").write_text(text)
    Path("short.txt").write_text("end")
    read("long.txt", "short.txt")
    texts, ids = written()
    assert texts == {"long.txt": text, "short.txt": "end"}
    assert ids.count(END_OF_TEXT) == 1


def test_folders_and_patterns_give_their_text_files_and_name_the_others(read):
    for name in ("docs/b.md", "docs/a/z.c", "docs/.git/config", "docs/.hidden", "src/x.py", "src/deep/y.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("docs/image.png").write_bytes(b"\x89PNG\0")
    Path("docs/latin.txt").write_bytes("café".encode("latin-1"))
    Path("docs/empty.txt").touch()
    captured = read("docs", "src/**/*.py", "docs/b.md")
    texts, _ = written()
    assert list(texts) == ["docs/a/z.c", "docs/b.md", "docs/latin.txt", "src/deep/y.py", "src/x.py"]
    assert texts["docs/latin.txt"] == "café"
    assert captured.err.splitlines()[:3] == [
        "skipped docs/empty.txt: empty",
        "skipped docs/image.png: binary",
        "not UTF-8, reading docs/latin.txt as cp1252",
    ]


def test_standard_input_is_a_document(read, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("piped é".encode())))
    Path("a.txt").write_text("file")
    read("-", "a.txt")
    assert written()[0] == {"standard input": "piped é", "a.txt": "file"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["missing.txt"], "missing.txt does not exist"),
        (["*.rst"], r"no text files found in \*.rst"),
        (["folder"], "no text files found in folder: 1 skipped, such as"),
        (["text.txt", "binary.dat"], "binary.dat is binary"),
        (["empty.txt"], "empty.txt is empty"),
        (["latin.txt", "--encoding", "utf-8"], r"latin.txt is not valid utf-8 \(byte 3\)"),
        (["bad.jsonl"], "no documents found in bad.jsonl"),
        ([], "no files given"),
        (["text.txt", "--latents", "int3"], "int8"),
        (["text.txt", "--append"], "book.gfc does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named(args, says, read):
    Path("text.txt").write_text("text")
    Path("empty.txt").touch()
    Path("binary.dat").write_bytes(b"a\0b")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("bad.jsonl").write_text("{}\n")
    Path("folder").mkdir()
    Path("folder/binary.dat").write_bytes(b"a\0b")
    captured = read(*args, code=2)
    assert re.search(says, captured.err)
    assert not Path("book.gfc").exists()


def test_a_file_that_exists_is_overwritten_or_appended_to_only_when_asked(read, monkeypatch):
    Path("a.txt").write_text("first")
    Path("b.txt").write_text("second")
    read("a.txt")
    before = Path("book.gfc").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(gf, "load", None, raising=False)
        assert "--overwrite" in read("b.txt", code=2).err
    assert Path("book.gfc").read_bytes() == before
    read("b.txt", "--append")
    texts, ids = written()
    assert texts == {"a.txt": "first", "b.txt": "second"}
    assert ids.count(END_OF_TEXT) == 1
    read("b.txt", "--overwrite")
    assert written()[0] == {"b.txt": "second"}


def test_the_next_command_works_as_printed(read, goldfinch):
    Path("a.txt").write_text("The whale swims past the ship.")
    printed = read("a.txt").out
    assert "tokens/s" in printed
    assert "bytes per token" in printed
    command, *args = shlex.split(printed.partition("next: ")[2])
    assert command == "goldfinch"
    goldfinch(*args, "--max-tokens", "3")


def test_integers_come_with_a_measurement_of_what_they_change(read):
    Path("a.txt").write_text("The whale swims past the ship. " * 4)
    printed = read("a.txt", "--latents", "int8").out
    assert re.search(r"int8 latents change predictions by \S+ nats .* same at \d+% of \d+ positions", printed)
    assert "latents change" not in read("a.txt", "--latents", "model", "--overwrite").out
    assert read_description(Path("book.gfc")).latents == "float32"


def test_an_interrupted_reading_says_how_far_it_was_and_writes_nothing(read, monkeypatch):
    Path("a.txt").write_text("x" * 5000)
    advance = progress.ReadingDisplay.advance

    def interrupt(display, tokens, position):
        advance(display, tokens, position)
        if display.tokens > 2000:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.ReadingDisplay, "advance", interrupt)
    captured = read("a.txt", code=130)
    assert "interrupted after 2,048 tokens; book.gfc was not written" in captured.err
    assert not Path("book.gfc").exists()


def test_a_long_prefill_shows_progress_without_a_terminal(read, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    Path("a.jsonl").write_text("".join(json.dumps({"text": "x" * 1500}) + "\n" for _ in range(3)))
    lines = read("a.jsonl").err.splitlines()
    assert len(lines) >= 3
    assert re.fullmatch(r"reading \d+%  \d+:\d\d left  [\d,]+ tokens  [\d,]+ tokens/s", lines[0])


def test_conversations_are_read_as_the_model_is_asked(read):
    messages = [{"role": "user", "content": "Who is Ahab?"}, {"role": "assistant", "content": "A captain."}]
    Path("chat.jsonl").write_text(json.dumps({"messages": messages}))
    read("chat.jsonl")
    assert written()[0] == {"chat.jsonl:1": "User: Who is Ahab?\n\nAssistant: A captain.\n\n"}


def test_a_context_file_is_named_as_one_and_new_folders_are_mentioned(small_run, goldfinch):
    Path("a.txt").write_text("x" * 50)
    args = ["read", "a.txt", "-m", small_run, "-o"]
    assert "book.txt must end in .gfc, such as book.gfc" in goldfinch(*args, "book.txt", code=2).err
    captured = goldfinch(*args, "new/deep/book.gfc")
    assert captured.err == "made the folder new/deep\n"
    assert "of 1 document in" in captured.out
