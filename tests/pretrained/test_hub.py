"""Models of the Hugging Face Hub by name, without a network: from a cache as huggingface_hub fills it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

import goldfinch as gf
from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.pretrained import hub

OLD, NEW = "0" * 40, "1" * 40
NAME = "hf:finches/small"


@pytest.fixture(autouse=True)
def _no_name_is_known():
    hub.hub_folder.cache_clear()
    yield
    hub.hub_folder.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch, small_config, small_model):
    """A cache with two commits of finches/small, of which main is the newer; there is no network."""
    repository = tmp_path / "hub" / "models--finches--small"
    for seed, commit in enumerate((OLD, NEW)):
        model = small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32, seed)
        LanguageModel(model, ByteTokenizer()).save(repository / "snapshots" / commit)
    for name, commit in (("main", NEW), ("v1", OLD)):
        reference = repository / "refs" / name
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repository


def same_weights(lm, folder):
    ours, theirs = lm.model.state_dict(), gf.load(folder, dtype="float32").model.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(("revision", "commit"), [("", NEW), ("@main", NEW), ("@v1", OLD), (f"@{OLD}", OLD)])
def test_a_model_in_the_cache_is_loaded_by_its_name_and_revision(revision, commit, cache):
    lm = gf.load(NAME + revision, dtype="float32")
    assert lm.folder == cache / "snapshots" / commit
    assert same_weights(lm, cache / "snapshots" / commit)
    assert lm.generate("whale", max_tokens=2).text


COMMANDS = [
    f"generate {NAME} whale --max-tokens 2",
    f"chat {NAME} --plain --max-tokens 2",
    f"info {NAME}",
    f"evaluate {NAME} book.txt",
    f"bench memory {NAME} --json",
    f"convert {NAME} -o small.pth",
    f"export hf {NAME} -o small",
    f"read book.txt -m {NAME} -o new.gfc",
    f"ask book.gfc -m {NAME} --plain whale --max-tokens 2",
]


@pytest.fixture
def book(cache):
    Path("book.txt").write_text("The whale swims past the ship.")
    assert run(f"read book.txt -m {NAME} -o book.gfc".split()) == 0
    return Path("book.gfc")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_model_takes_the_name(command, book, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The whale"))
    capsys.readouterr()
    assert run(command.split()) == 0
    assert capsys.readouterr().out


def test_a_context_file_names_the_commit_and_finds_it_on_another_machine(book, cache, capsys, monkeypatch):
    elsewhere = cache.parents[1] / "other machine"
    cache.parent.rename(elsewhere)
    assert run(["ask", "book.gfc", "--plain", "x", "--max-tokens", "2"]) == 2
    assert f"model folder {NAME}@{NEW} not found (book.gfc names it): give it with -m" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere))
    assert run(["ask", "book.gfc", "--plain", "x", "--max-tokens", "2"]) == 0


def test_a_process_reads_the_files_of_one_commit(cache):
    folder = gf.load(NAME).folder
    (cache / "refs" / "main").write_text(OLD)
    assert gf.load(NAME).folder == folder


def test_the_environment_variables_of_huggingface_hub_count(cache, tmp_path):
    command = [sys.executable, "-m", "goldfinch", "info", NAME, "--json"]
    environment = {"HF_HUB_CACHE": str(cache.parent), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"]["vocab_size"] == 257


def test_only_what_a_model_needs_is_downloaded(cache, monkeypatch):
    asked = []

    def download(repository, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return cache / "snapshots" / NEW

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run(["info", NAME])
    assert asked == [["config.json"]]
    gf.load(NAME)
    stored = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "README.md"]
    others = ["pytorch_model.bin", "model.pth", "modeling_goldfinch.py", "optimizer.pt", "onnx/model.onnx"]
    assert list(huggingface_hub.utils.filter_repo_objects(stored + others, allow_patterns=asked[1])) == stored


def response(status):
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (errors.GatedRepoError("401", response=response(403)), "accept the conditions at https://huggingface.co/"),
        (
            errors.RepositoryNotFoundError("404", response=response(404)),
            "does not exist, or is private: check the name",
        ),
        (errors.RevisionNotFoundError("404", response=response(404)), "has no revision v9: choose a branch, a tag"),
        (errors.LocalEntryNotFoundError("no route to host"), "the Hub cannot be reached (no route to host)"),
        (errors.HfHubHTTPError("503 unavailable", response=response(503)), "it cannot be downloaded: 503 unavailable"),
        (OSError(28, "No space left on device"), "it cannot be downloaded: No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(raised, message, monkeypatch):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(gf.UserError) as caught:
        gf.load("hf:finches/large@v9")
    assert str(caught.value).startswith("hf:finches/large@v9: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_a_model_that_is_not_in_the_cache_is_refused(cache):
    with pytest.raises(gf.UserError, match=r"HF_HUB_OFFLINE is set, and .*hub does not hold all of the model"):
        gf.load("hf:finches/large")


def test_a_repository_without_a_config_is_no_model(cache):
    (cache / "snapshots" / NEW / "config.json").unlink()
    with pytest.raises(gf.UserError, match=f"{NAME} holds no model: it has no config.json; a published .pth can be"):
        gf.load(NAME)


@pytest.mark.parametrize("name", ["hf:", "hf:small", "hf:finches/small/deep", "hf:finches/small@", "hf:fin ches/small"])
def test_other_forms_of_names_are_refused(name):
    with pytest.raises(gf.UserError, match="is not the name of a model on the Hub: use hf:OWNER/NAME"):
        gf.load(name)


def test_without_huggingface_hub_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(gf.UserError, match=r"needs the package huggingface_hub .*: pip install 'goldfinch\[hf\]'"):
        gf.load(NAME)
