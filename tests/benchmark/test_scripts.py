"""benchmarks/: the smallest run of each script works, and prints no speed where outputs disagree."""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel

PRESET = "goldfinch-L3-D128"
ONCE = ["--repeats", 1]
TRAINING = ["--vocab-size", 97, "--batch-size", 2, "--sequence-length", 16, "--threads", 1, *ONCE]
SMALLEST = {
    "wkv6": ["--shapes", "1x40x2", "1x1x2", *ONCE],
    "tokenization": ["--bytes", 300, *ONCE],
    "prefill": [PRESET, "--lengths", 8, 16, *ONCE, "--peers"],
    "decode": [PRESET, "--lengths", 8, 16, "--tokens", 1, *ONCE, "--peers"],
    "decode --batch": [PRESET, "--lengths", 8, "--tokens", 1, *ONCE, "--batch", 1, 2, 3],
    "kinds": ["--kinds", "goldfinch", "llama", *TRAINING],
    "block_plan": [PRESET, "--plans", "eager", "checkpointing", *TRAINING],
    "gold_only": [PRESET, *TRAINING],
    "train": [PRESET, "--shapes", "2x16", *ONCE, "--peers"],
    "evaluate": [PRESET, "--questions", 2, "--examples", 40, "--vocab-size", 97, "--hf", 2, *ONCE],
}
ROWS = {
    "wkv6": ("cpu, us", 4),
    "tokenization": ("library, s", 18),
    "prefill": ("us per token", 2),
    "decode": ("key cache, bytes", 8),
    "decode --batch": ("times one alone", 6),
    "kinds": ("tokens/s", 2),
    "block_plan": ("times eager", 2),
    "gold_only": ("peak memory, MiB", 2),
    "train": ("peak memory, bytes", 1),
    "evaluate": ("times fewer", 3),
}
"""A column, and the number of rows."""
IN_NEW_PROCESSES = ("gold_only", "train")  # each measures its peak memory in processes of its own
WITHOUT_PLOT = ("block_plan", "evaluate")
FACTS = ("processor", "instruction set", "threads", "torch", "goldfinch")
needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
needs_llama_cpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "xllamacpp", "gguf")),
    reason="no llama.cpp",
)


@pytest.fixture
def small_folder(small_config, small_model, tmp_path):
    """A folder with a small model that reads bytes."""
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    LanguageModel(small_model(config, torch.float32), ByteTokenizer()).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in IN_NEW_PROCESSES else name for name in SMALLEST]
)
def test_the_smallest_run_prints_its_rows_and_the_machine(name, run, tmp_path):
    script, png = name.split()[0], ["--png", tmp_path / "plot.png"]
    content = json.loads(run(script, *SMALLEST[name], "--json", *png * (script not in WITHOUT_PLOT)))
    column, rows = ROWS[name]
    assert len(content["rows"]) == rows
    assert all(row[column] for row in content["rows"] if column != "times one alone")
    assert all(content[fact] for fact in FACTS)
    if script not in WITHOUT_PLOT:
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_ends_with_the_machine_and_its_instruction_set(run, instructions, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for found, said in (("avx512bw", "AVX512, bf16 emulated"), ("avx512_bf16", "AVX512, bf16 by avx512_bf16")):
        instructions(found)
        assert f"instruction set: {said}" in run("wkv6", "--shapes", "1x1x1", *ONCE).splitlines()


def test_each_batch_is_compared_with_one_alone(run):
    rows = json.loads(run("decode", *SMALLEST["decode --batch"], "--json"))["rows"]
    assert [(row["what"], row["contexts"]) for row in rows] == [
        (what, size) for what in ("step", "generate") for size in (1, 2, 3)
    ]
    assert [row["times one alone"] is None for row in rows] == [True, False, False] * 2


def test_quantization_of_a_short_text(run, small_folder, tmp_path):
    (tmp_path / "book.txt").write_text("Call me Ishmael. Some years ago. " * 30)
    content = json.loads(run("quantization", small_folder, tmp_path / "book.txt", "--samples", 4, "--json"))
    assert [row["latents"] for row in content["rows"]] == ["bfloat16", "int8", "int4"]
    errors = [row["mean KL, nats"] for row in content["rows"]]
    assert 0 <= errors[0] < errors[2]
    assert content["tokens"] == 990
    assert 0 < content["positions"] <= 4


@pytest.fixture
def million(small_folder, tmp_path):
    """Arguments with which million.py measures in this process."""
    np.save(tmp_path / "ids.npy", np.arange(200) % 257)
    return argparse.Namespace(
        model=small_folder, tokens=200, latents="bfloat16", dtype="float32", json=True, ids=tmp_path / "ids.npy"
    )


def test_a_million_tokens_with_two_hundred(script, million, capsys):
    script("million").measure(million)
    rows = {row["what"]: row["measured"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["key cache, bytes"] == 200 * rows["key cache, bytes per token"] > 0
    assert rows["file, bytes"] > rows["key cache, bytes"]


@pytest.mark.slow
def test_a_million_tokens_in_processes_of_their_own(script):
    command = [sys.executable, script("million").__file__, PRESET, "--tokens", "100", "--json"]
    content = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert content["title"] == "100 tokens, 3 layers, width 128"


@pytest.mark.slow
def test_a_server_under_load(run, small_folder, tmp_path):
    size = ["--requests", 24, "--users", 3, "--shared-tokens", 40, "--max-tokens", 3]
    content = json.loads(run("serve", small_folder, *size, "--json", "--png", tmp_path / "plot.png"))
    assert sum(row["number"] for row in content["rows"]) == 24
    assert content["errors"] == {}
    chat = content["rows"][0]
    assert 0 < chat["first token, ms: p50"] <= chat["first token, ms: p99"]
    assert content["prompt_tokens"]["cached"] > 0
    assert content["open_files_after"] == content["open_files_before"] > 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prefill", "LanguageModel.logits"),
        ("decode", "LanguageModel.logits"),
        ("decode --batch", "decode.decode_together"),
        ("kinds", "steps.next_token_loss"),
        ("gold_only", "steps.next_token_loss"),
        ("train", "steps.next_token_loss"),
    ],
)
def test_no_speed_is_printed_where_outputs_disagree(name, wrong, run, script, monkeypatch, capsys):
    script(name.split()[0])  # its modules can then be found
    if name in IN_NEW_PROCESSES:
        monkeypatch.setattr(f"{name}.peak_in_new_process", lambda *_: 1)
    module, _, attribute = wrong.rpartition(".")
    owner = LanguageModel if module == "LanguageModel" else importlib.import_module(module)
    right = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *args: right(*args) * 1.01)
    with pytest.raises(RuntimeError, match="no speed is shown"):
        run(name.split()[0], *SMALLEST[name])
    assert capsys.readouterr().out == ""


def test_no_speed_of_wkv6_is_printed_where_outputs_or_gradients_disagree(run, script, monkeypatch, capsys):
    module = script("wkv6")
    right = module.wkv6

    def wrong_output(*args, implementation):
        y, state = right(*args, implementation=implementation)
        return (y * 1.001, state) if implementation == "cpu" else (y, state)

    def wrong_gradient(r, k, v, log_w, *, implementation):
        if implementation == "cpu":
            r = r + 0.001 * (r - r.detach())
        return right(r, k, v, log_w, implementation=implementation)

    for wrong in (wrong_output, wrong_gradient):
        monkeypatch.setattr(module, "wkv6", wrong)
        with pytest.raises(RuntimeError, match=r"cpu and chunked disagree by .*e-0\d; no speed is shown"):
            run("wkv6", *SMALLEST["wkv6"])
        assert capsys.readouterr().out == ""


def test_no_speed_of_blocks_is_printed_where_their_losses_disagree(run, script, monkeypatch, capsys):
    script("block_plan")
    right, calls = importlib.import_module("steps").next_token_loss, itertools.count()
    monkeypatch.setattr("steps.next_token_loss", lambda *args: right(*args) * (1 + 1e-3 * next(calls)))
    with pytest.raises(RuntimeError, match=r"losses of eager and checkpointing differ by 1\.0e-03; no speed is shown"):
        run("block_plan", *SMALLEST["block_plan"])
    assert capsys.readouterr().out == ""


def test_nothing_of_a_million_is_printed_if_the_opened_context_predicts_otherwise(script, million, monkeypatch, capsys):
    module = script("million")
    monkeypatch.setattr(LanguageModel, "open", lambda self, path, budget=0: self.read([1, 2, 3], budget=budget))
    with pytest.raises(RuntimeError, match="the opened context: outputs disagree"):
        module.measure(million)
    assert capsys.readouterr().out == ""


class FixedPeer:
    """A peer that predicts what it is given."""

    def __init__(self, logits):
        self.prediction = torch.tensor(logits).log_softmax(-1)

    def log_probabilities(self, ids):
        return self.prediction


def test_peers_that_disagree_are_not_measured(script):
    peers, shape = script("peers"), script("llama").Shape.of(PRESET, "float32")
    same = FixedPeer([2.0, 1.0, 0.0])
    peers.check_peers({"one": same, "other": FixedPeer([2.0, 1.001, 0.0])}, shape)
    with pytest.raises(RuntimeError, match=r"one and other disagree by 0.*no speed is shown"):
        peers.check_peers({"one": same, "other": FixedPeer([2.0, 1.2, 0.0])}, shape)
    with pytest.raises(RuntimeError, match="disagree by nan"):
        peers.check_peers({"one": same, "other": FixedPeer([2.0, float("nan"), 0.0])}, shape)


def test_missing_peers_are_skipped_and_named(script, monkeypatch, capsys):
    peers = script("peers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    assert peers.installed(list(peers.NEEDS)) == ["transformers"]
    assert capsys.readouterr().err.splitlines() == [
        f"skipping {name}, which needs gguf: pip install -e '.[bench]'" for name in ("llama.cpp", "llama.cpp-flash")
    ]


@pytest.mark.slow
@needs_transformers
@pytest.mark.filterwarnings("default")
def test_the_smallest_runs_with_transformers(run):
    for name in ("prefill", "decode", "train"):
        rows = json.loads(run(name, *SMALLEST[name], "transformers", "--json"))["rows"]
        assert any(row["model"] == "transformers" for row in rows), name
        ours = [row for row in rows if row["model"] == "GoldFinch" or row["model"].startswith("GoldFinch, ")]
        column = "times the peer" if name == "train" else "times the better peer"
        assert all(row[column] > 0 for row in ours), name


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.filterwarnings("default")
def test_the_smallest_runs_with_llama_cpp(run):
    for name in ("prefill", "decode"):
        out = run(name, *SMALLEST[name], "llama.cpp", "llama.cpp-flash", "--json")
        rows = json.loads(out[out.index("{") :])["rows"]
        assert {"llama.cpp", "llama.cpp-flash"} < {row["model"] for row in rows}
