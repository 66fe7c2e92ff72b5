"""Help and messages about wrong arguments, as they appear in terminals of all widths."""

import contextlib
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from goldfinch.cli import usage
from goldfinch.cli.arguments import parse
from goldfinch.cli.main import COMMANDS, run
from goldfinch.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paint:
    """Paint a wall with a colour of your choice, which is a sentence that is long enough to need a second line.

    goldfinch paint wall.txt --colour red
    """

    wall: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="WALL")]]
    """What to paint."""
    bucket: Annotated[Path, tyro.conf.arg(aliases=["-b"], metavar="BUCKET")]
    """Where the paint is."""
    colour: Literal["red", "green"] = "red"
    """The colour; red is the first,
    `green` the second of those that this test offers for a wall."""
    brush_width: int = 3
    """Width of the brush."""
    dry: bool = False
    """Wait until it is dry."""


def help_of(capsys, *args):
    with contextlib.suppress(SystemExit):
        run([*args, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", [["train"], ["data", "prepare"], ["cache"], ["ask"], ["compare"], []])
def test_help_fills_the_width_of_the_terminal_and_no_more(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(capsys, *command).splitlines()
    assert max(map(len, lines)) <= columns
    for line, below in itertools.pairwise(lines):
        indents = [len(each) - len(each.lstrip()) for each in (line, below)]
        if line.strip() and below.strip() and indents[0] == indents[1] != 2:
            # One paragraph: it breaks only where the next word does not fit.
            assert len(line) + 1 + len(below.split()[0]) > columns, line


def test_a_flags_text_is_one_paragraph_whatever_its_source_lines_begin_with(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        parse(Paint, "paint", ["--help"])
    text = capsys.readouterr().out
    assert "red is the first, `green` the second" in text
    assert re.search(r"^  --dry +Wait until it is dry\.$", text, re.MULTILINE)


def test_help_has_no_escape_sequences(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b" not in help_of(capsys, "cache")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "missing: WALL, --bucket (see goldfinch paint --help)"),
        (["--brush", "3"], "unknown option --brush; did you mean --brush-width? (see "),
        (["w", "-b", "b", "--bw", "3"], "unknown option --bw; did you mean --brush-width? (see "),
        (["w", "-b", "b", "--colr", "red"], "unknown option --colr; did you mean --colour? (see "),
        (["w", "-b", "b", "--zzz", "3"], "unknown option --zzz (see "),
        (["w", "-b", "b", "--colour", "grean"], "unknown value 'grean' for --colour; did you mean green? (see "),
        (["w", "-b", "b", "--brush-width", "x"], "--brush-width: 'x' is not an integer (see "),
        (["w", "-b", "b", "--brush-width"], "--brush-width needs a value (see "),
        (["w", "-b", "b", "more"], "unexpected argument 'more' (see "),
    ],
)
def test_wrong_arguments_are_answered_with_names_alone(args, message):
    with pytest.raises(UserError) as error:
        parse(Paint, "paint", args)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data", "prepar", "x"], "unknown command 'prepar'; did you mean prepare? (see goldfinch data --help)"),
        (
            ["data", "prepare", "x", "-o", "y", "--tokeniser", "z"],
            "unknown option --tokeniser; did you mean --tokenizer? ",
        ),
        (["cache"], "missing: one of info, cat, grep, verify (see goldfinch cache --help)"),
        (["cache", "grep", "x"], "missing: TEXT (see goldfinch cache grep --help)"),
    ],
)
def test_subcommands_answer_for_themselves(args, message, capsys):
    assert run(args) == 2
    assert message in capsys.readouterr().err


def test_each_command_says_in_one_line_what_is_missing(capsys):
    for command in COMMANDS.keys() - {"compare"}:  # whose unknown options are those of train
        run([command, "--no-such-option"])
        error = capsys.readouterr().err
        assert error.startswith("goldfinch: unknown option --no-such-option"), command
        assert len(error) < 150, command


def test_help_of_a_command_is_found_both_ways(capsys):
    assert run(["help"]) == 0
    assert "commands:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(["help", "cache", "grep"])
    assert capsys.readouterr().out == help_of(capsys, "cache", "grep")


def test_the_nearest_option_is_of_the_same_group(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("words and words\n\n" * 30)
    data = str(tmp_path / "data")
    assert run(["data", "prepare", str(tmp_path / "text.txt"), "-o", data, "--tokenizer", "bytes"]) == 0
    capsys.readouterr()
    assert run(["train", "finch-L1-D64", "--data", data, "-o", str(tmp_path / "run"), "--optimizer.lr", "3"]) == 2
    assert "did you mean --optimizer.learning-rate?" in capsys.readouterr().err


def test_a_layout_of_tyro_that_is_not_known_is_shown_as_it_is():
    boxed = "usage: goldfinch ask [-h]\n\n╭─ options ─────╮\n│ -h, --help     │\n╰───────────────╯"
    assert usage.format_help(boxed, 80) == boxed
    assert usage.explain(boxed, "goldfinch ask", [], boxed) == "the arguments cannot be read (see goldfinch ask --help)"
