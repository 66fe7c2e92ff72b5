"""Commands that are killed at any moment: repeated, they end as if nothing had happened, and leave nothing behind."""

import os
import random
import signal
import subprocess
import sys

import pytest

from goldfinch.data.moby_dick import moby_dick_chapters


def digest(folder):
    """Name -> content of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*args):
    return subprocess.Popen([sys.executable, "-m", "goldfinch", *map(str, args)], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_data_prepare_killed_at_any_moment_leaves_nothing_half(tmp_path):
    chooser = random.Random(0)
    (tmp_path / "book.txt").write_text("\n\n".join(moby_dick_chapters()))
    prepare = ["data", "prepare", tmp_path / "book.txt", "--vocab-size", "1000", "-o"]
    assert start(*prepare, tmp_path / "whole").wait() == 0
    output = tmp_path / "killed" / "data"
    for _ in range(4):
        process = start(*prepare, output)
        try:
            process.wait(timeout=chooser.uniform(0.3, 3))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if output.exists():
            break
    if not output.exists():
        assert start(*prepare, output).wait() == 0
    assert digest(output) == digest(tmp_path / "whole")
    assert [path.name for path in output.parent.iterdir()] == ["data"]


@pytest.mark.slow
def test_compare_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    chooser = random.Random(1)
    (tmp_path / "book.txt").write_text(moby_dick_chapters()[0])
    assert start("data", "prepare", tmp_path / "book.txt", "--tokenizer", "bytes", "-o", tmp_path / "data").wait() == 0
    settings = ["--num-seeds", 1, "--steps", 12, "--save-every", 3, "--sequence-length", 32, "--batch-size", 2]
    compare = ["compare", "finch-L1-D64", "llama-L1-D64", "--data", tmp_path / "data", *settings, "-o"]
    assert start(*compare, tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    for _ in range(2):
        with start(*compare, output) as process:
            try:
                process.wait(timeout=chooser.uniform(3, 9))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
    assert any(start(*compare, output).wait() == 0 for _ in range(5))  # runs of the killed one may still be ending
    for path in (tmp_path / "whole").rglob("model.safetensors"):
        assert (output / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not list(output.rglob("*.tmp"))
