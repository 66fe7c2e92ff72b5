"""The README is a map that runs: every command and the Python example, in order, in a new folder."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from goldfinch.cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def goldfinch_commands(text):
    """The goldfinch commands in a shell text, as argument lists, comments and pip left out."""
    commands = (command for line in text.splitlines() for command in line.split("&&"))
    words = (shlex.split(command, comments=True) for command in commands)
    return [command[1:] for command in words if command and command[0] == "goldfinch"]


@pytest.fixture
def new_folder(tmp_path, monkeypatch, golden_reference):
    """Where the README's reader stands: some books and a published checkpoint."""
    (tmp_path / "books").mkdir()
    for number in range(3):
        text = "\n\n".join(f"Chapter {i}. The whale swims past ship {i * number}." for i in range(150))
        (tmp_path / "books" / f"{number}.txt").write_text(text)
    config, tensors = golden_reference("goldfinch")
    torch.save(tensors, tmp_path / "rwkv-final.pth")
    (tmp_path / "goldfinch.yaml").write_text(f"model: {json.dumps(config)}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def golden_reference():
    """golden_reference(kind) -> the reference's config and tensors of one golden file."""
    namespace: dict = {}
    golden = ROOT / "tests" / "golden"
    exec((golden / "weights.py").read_text(), namespace)

    def make(kind):
        with safe_open(golden / f"{kind}.safetensors", "pt") as file:
            metadata = file.metadata()
        config = json.loads(metadata["config"])
        shapes = json.loads(metadata["parameter_shapes"])
        weights = {name: namespace["weight"](name, tuple(shape), config["seed"]) for name, shape in shapes.items()}
        return config, {name: torch.from_numpy(array) for name, array in weights.items()}

    return make


@pytest.mark.slow
def test_every_command_and_example_works_as_printed(new_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    start, use = blocks("sh")[0], blocks("sh")[2]
    (quickstart,) = goldfinch_commands(start)
    assert quickstart == ["quickstart"]
    assert run([*quickstart, "--max-minutes", "0.03"]) == 0
    shown = capsys.readouterr().out
    for promised in ("bits per byte", "loss.png", "x less"):
        assert promised in shown
    printed = goldfinch_commands(shown.partition("next:")[2])
    assert len(printed) == 4
    for command in printed:
        assert run(command) == 0, command
    commands = goldfinch_commands(use)
    assert len(commands) == 27
    for command in commands:
        words = [str(path) for word in command for path in (sorted(new_folder.glob(word)) if "*" in word else [word])]
        if words[-1] == "rwkv-final.pth":
            (new_folder / "rwkv-final.pth").unlink()
        assert run(words) == 0, command
    capsys.readouterr()
    (example,) = blocks("python")
    exec(example, {})
    assert capsys.readouterr().out


def test_the_tree_names_what_is_there_and_nothing_else():
    tree = README.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    named = set(re.findall(r"^  (\S+)", tree, flags=re.MULTILINE))
    package = ROOT / "src" / "goldfinch"
    there = {path.name + "/" * path.is_dir() for path in package.iterdir() if not path.name.startswith(("_", "."))}
    assert named == there - {"py.typed"}
