"""docs/evaluation.md takes a newcomer from install to an evaluated model: its commands run, in order."""

import re
import shlex
from pathlib import Path

import pytest
import task_data
import torch

from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel

DOCS = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture
def new_folder(tmp_path, monkeypatch, small_config, small_model):
    """What the reader has after the quickstart, a few books, and the data that was fetched."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    LanguageModel(small_model(config, torch.float32), ByteTokenizer()).save("runs/quickstart")
    task_data.write_all("data")
    Path("books").mkdir()
    Path("books/whale.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 20)
    return tmp_path


@pytest.mark.slow
def test_the_commands_and_the_example_in_python_work_as_printed(new_folder, capsys):
    lines = (line for block in re.findall(r"```sh\n(.*?)```", DOCS, flags=re.DOTALL) for line in block.splitlines())
    commands = [words[1:] for words in map(shlex.split, lines) if words[0] == "goldfinch"]
    assert commands.pop(0) == ["quickstart"]
    assert len(commands) == 6
    for command in commands:
        limited = [*command, "--limit", "3"] if "--tasks" in command and "--limit" not in command else command
        assert run(limited) == 0, command
        output = Path(command[command.index("-o") + 1])
        assert (output / "results.md").exists()
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL) if "simple_evaluate" in code
    )
    capsys.readouterr()
    results: dict = {}
    exec(example, results)
    assert results["results"]["results"].keys() == {"moby_dick_cloze"}
