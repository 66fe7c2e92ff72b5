"""Progress of training and reading, in narrow terminals and in files."""

import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from goldfinch.cli.compare import CompareDisplay
from goldfinch.cli.progress import (
    SECONDS_BETWEEN_LINES,
    FirstPassDisplay,
    ReadingDisplay,
    TrainingDisplay,
    WindowsDisplay,
)
from goldfinch.cli.units import plural

RECORD = {"step": 1200, "loss": 3.14159, "tokens_per_second": 12345.6, "skipped_steps": 0}


@pytest.fixture
def settings():
    return SimpleNamespace(batch_size=4, sequence_length=256, output="run", compile=False)


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time pass."""
    now = [0.0]
    monkeypatch.setattr("goldfinch.cli.progress.time.monotonic", lambda: now[0])
    return lambda seconds: now.append(now.pop() + seconds)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_bar_says_the_step_and_the_time_left_first(columns, settings, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with TrainingDisplay() as display:
        display.start(settings, 0, 10_000)
        display.step(RECORD, 0.12)
    frames = capsys.readouterr().out
    assert "step 1,200 of 10,000 -:-- left loss" in _plain(frames)


def test_a_file_gets_a_line_now_and_then(settings, capsys, clock):
    with TrainingDisplay() as display:
        display.start(settings, 0, 10_000)
        display.step(RECORD, 0.06)
        clock(2 * SECONDS_BETWEEN_LINES)
        display.step(RECORD, 0.12)
        display.step(RECORD, 0.12)
    assert capsys.readouterr().out.splitlines()[1:] == ["step 1,200 of 10,000  2:27 left  loss 3.142  12,346 tokens/s"]


def test_a_long_measurement_does_not_fill_a_file_with_lines(capsys, clock):
    curve = SimpleNamespace(name="run")
    with WindowsDisplay() as display:
        for window in range(1, 101):
            clock(1)
            display.advance(curve, window, 100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 10
    assert captured.err.splitlines()[-1] == "run: window 100 of 100"


def test_reading_says_how_much_is_done_before_how_fast(capsys, clock):
    with ReadingDisplay(total=1000) as display:
        clock(2 * SECONDS_BETWEEN_LINES)
        display.advance(100, 250)
    assert capsys.readouterr().err == "reading 25%  1:00 left  100 tokens  5 tokens/s\n"


def test_a_finished_run_that_is_resumed_says_so(settings, capsys):
    with TrainingDisplay() as display:
        display.start(settings, 20, 20)
    out = capsys.readouterr().out
    assert "all 20 steps are done" in out
    assert "--steps" in out


def test_samples_keep_their_lines(capsys):
    with TrainingDisplay() as display:
        display.sample(7, "CHAPTER 1. Loomings.\n\nCall me Ishmael, " + "a long line " * 20)
    out = capsys.readouterr().out
    assert "step 7 writes: CHAPTER 1. Loomings.\n\nCall me Ishmael, a long line" in out
    assert len(out.splitlines()) == 3


def test_plurals():
    assert [plural(number, "file") for number in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]


def _plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [60, 100])
def test_the_table_of_a_comparison_says_step_and_time_left_first(columns, capsys):
    console = Console(width=columns, force_terminal=True)
    progress = SimpleNamespace(step=1200, loss=3.14159, validation_loss=3.2, tokens_per_second=12345.6)
    status = SimpleNamespace(
        spec=SimpleNamespace(name="goldfinch-L6-D256", seed=0, steps=10_000),
        state="running",
        progress=progress,
        seconds_per_step=0.5,
        steps_left=8800,
    )
    with CompareDisplay(2, console) as display:
        display.update([status])
    assert re.search(r"running +1,200 of 10,000 +1:13:20 ", _plain(capsys.readouterr().out))


def first_pass(clock, seconds):
    """A pass in ten parts, each of so many seconds."""
    display = FirstPassDisplay()
    for part in range(1, 11):
        clock(seconds)
        display.advance(part / 10)


def test_a_quick_first_pass_shows_nothing(clock, capsys, monkeypatch):
    first_pass(clock, 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    first_pass(clock, 0.05)
    assert capsys.readouterr().err == ""


def test_a_slow_first_pass_shows_the_time_left_and_leaves_no_trace(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    first_pass(clock, 2)
    frames = _plain(capsys.readouterr().err).split("\r")
    assert frames[0].strip() == "reading the compressed keys: 20%  0:08 left"
    assert [frames[-2].strip(), frames[-1]] == ["", ""]


def test_a_slow_first_pass_prints_a_line_now_and_then_to_a_file(clock, capsys):
    first_pass(clock, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"reading the compressed keys: {part}%  {left} left" for part, left in ((40, "0:18"), (70, "0:10"))
    ]
