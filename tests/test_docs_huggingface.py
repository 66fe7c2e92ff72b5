"""docs/huggingface.md takes a newcomer to the Hub and back: its commands run; the Hub is a folder."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from goldfinch.cli.main import run
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.pretrained import hub

DOCS = (Path(__file__).parents[1] / "docs" / "huggingface.md").read_text(encoding="utf-8")
COMMIT = "a" * 40


@pytest.fixture
def repository(tmp_path, monkeypatch, small_config, small_model):
    """Where huggingface_hub keeps OWNER/NAME; the reader has a trained model."""
    monkeypatch.chdir(tmp_path)
    model = small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32)
    LanguageModel(model, ByteTokenizer()).save("runs/quickstart")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.hub_folder.cache_clear()
    yield tmp_path / "hub" / "models--OWNER--NAME"
    hub.hub_folder.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_way_to_a_tuned_evaluated_model(repository, capsys):
    Path("books").mkdir()
    for path, chapter in zip((Path("book.txt"), Path("books/whale.txt")), moby_dick_chapters(), strict=False):
        path.write_text(chapter[:8000])
    names: dict = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", DOCS.partition("## The library's own tests")[0], flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "sh", "python", "python"]
    for kind, block in blocks:
        if kind == "python":  # shorter, and without a file to be seen in a browser
            short = re.sub(r"(max_steps|steps)=\d+", r"\1=2", block).replace(
                "sequence_length=512", "sequence_length=32"
            )
            exec(
                short.replace("TrainingArguments(", "TrainingArguments(report_to=[], use_cpu=True, output_dir="), names
            )
            continue
        for program, *arguments in (shlex.split(line) for line in block.splitlines()):
            if program == "goldfinch" and arguments != ["quickstart"]:
                limit = ["--limit", "3"] if arguments[0] == "evaluate" else []
                assert run([*arguments, *limit]) == 0, arguments
    assert Path("results/tuned/results.md").exists()


def test_a_model_goes_to_the_hub_and_comes_back(repository, capsys):
    section = DOCS.partition("## The Hub")[2]
    (block,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[:2] for words in commands] == [
        ["goldfinch", "export"],
        ["hf", "auth"],
        ["hf", "upload"],
        ["goldfinch", "generate"],
    ]
    for program, *arguments in commands:
        if program == "goldfinch":
            assert run(arguments) == 0, arguments
        elif arguments[0] == "upload":
            assert arguments[1] == "OWNER/NAME"
            shutil.copytree(arguments[2], repository / "snapshots" / COMMIT)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(COMMIT)
    assert "next: hf upload OWNER/NAME quickstart" in capsys.readouterr().out
