"""Talking with a model in the terminal, and through pipes."""

import io
from pathlib import Path

import pytest

import goldfinch as gf
from goldfinch.cli import conversation
from goldfinch.data.tokenizers import ByteTokenizer

SHORT = ["--max-tokens", "6", "--seed", "1"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def chat(small_run, goldfinch, monkeypatch):
    """chat(*lines, options=()) types lines into `goldfinch chat` in a terminal; an exception among them is raised."""

    def call(*lines, options=(), source=small_run):
        typed = iter(lines)

        def read_line(*_):
            line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", read_line)
        return goldfinch("chat", source, *SHORT, *options)

    return call


def answers(captured):
    return [part.rstrip("\n") for part in captured.out.split("Assistant:")[1:]]


def test_a_first_line_says_how_to_leave_and_an_empty_line_does_not_leave(chat):
    captured = chat("", "Where?", "", "When?", "/exit", "not read")
    assert "/exit or Ctrl-D leaves" in captured.err.splitlines()[0]
    assert len(answers(captured)) == 2


def test_help_lists_the_commands(chat):
    err = chat("/help").err
    for command in ("/retry", "/clear", "/save FILE", "/exit"):
        assert command in err


def test_after_clear_the_conversation_begins_anew(chat):
    first, second = answers(chat("Where?", "/clear", "Where?"))
    assert first == second
    first, second = answers(chat("Where?", "Where?"))
    assert first != second


def test_retry_answers_the_same_message_with_other_numbers(chat):
    first, second, third = answers(chat("Where?", "/retry", "/retry"))
    assert len({first, second, third}) > 1
    assert answers(chat("Where?", options=["--seed", "2"])) == [second]
    assert "no message to answer again" in chat("/retry").err


def test_a_conversation_is_saved_as_text_and_as_a_context(chat):
    captured = chat(
        "Where?", "/save talk.txt", "/save talk.gfc", "/save talk.gfc", "/save", "When?", options=["--user", "Me"]
    )
    text = Path("talk.txt").read_text()
    assert text.startswith("Me: Where?\n\nAssistant:")
    context = gf.load("run").open("talk.gfc")
    assert ByteTokenizer().decode(context.ids()).startswith("Me: Where?\n\nAssistant:")
    assert "talk.gfc exists" in captured.err
    assert "needs the name of a file" in captured.err
    assert len(answers(captured)) == 2


def test_several_lines_between_quotes_are_one_message(chat):
    chat('"""first', "", '/second"""', "/save talk.txt")
    assert Path("talk.txt").read_text().startswith("User: first\n\n/second\n\nAssistant:")


def test_a_misspelt_command_is_not_sent_to_the_model(chat):
    captured = chat("/clera", "/usr/bin is a folder")
    assert "unknown command /clera; did you mean /clear?" in captured.err
    assert len(answers(captured)) == 1


def test_ctrl_c_ends_an_answer_or_a_line_but_not_the_program(chat, monkeypatch):
    print_stream = conversation.print_stream

    def interrupted(stream, strip):
        print(next(stream), end="")
        monkeypatch.setattr(conversation, "print_stream", print_stream)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "print_stream", interrupted)
    captured = chat("Where?", KeyboardInterrupt(), "When?", "/save talk.txt")
    first, second = answers(captured)
    assert len(first.strip()) < len(second.strip())
    assert "User: When?" in Path("talk.txt").read_text()


def test_through_a_pipe_only_answers_are_printed(small_run, goldfinch, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\n\nWhen?\n"))
    captured = goldfinch("chat", small_run, *SHORT)
    assert "User:" not in captured.out
    assert "Assistant:" not in captured.out
    assert captured.err == ""
