"""`goldfinch bench memory`: measured against computed; `goldfinch bench speed`: against what the machine can do."""

import json

import pytest

from goldfinch.benchmark import memory as memory_benchmark
from goldfinch.benchmark import speed as speed_benchmark
from goldfinch.benchmark.memory import llama_like, measure
from goldfinch.cli.main import run
from goldfinch.model.accounting import account
from goldfinch.presets import model_config

SMALL = (1024, 5000)


def test_what_is_measured_agrees_with_what_is_computed_and_what_does_not_fit_is_computed():
    config = model_config("goldfinch-L6-D128", 300)
    for shape in (config, llama_like(config)):
        costs = account(shape, id_bytes=2)
        room = costs.total_bytes(2000)
        fits, too_large = measure(shape, lengths=SMALL, max_bytes=room)
        assert fits.measured == pytest.approx(fits.computed, rel=0.01)
        assert fits.computed == costs.total_bytes(1024)
        assert (too_large.measured, too_large.total) == (None, costs.total_bytes(5000))


def test_latents_in_integers_take_less():
    config = model_config("goldfinch-L6-D512", 300)
    bf16, int8, int4 = (
        next(measure(config, latents, lengths=(100_000,), max_bytes=10**9)).measured
        for latents in ("bfloat16", "int8", "int4")
    )
    assert bf16 - int8 == pytest.approx(100_000 * (32 - 2), rel=0.01)
    assert int8 - int4 == pytest.approx(100_000 * 16, rel=0.01)


def test_the_command_prints_a_table_and_draws_a_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_benchmark, "LENGTHS", SMALL)
    png = tmp_path / "memory.png"
    assert run(["bench", "memory", "goldfinch-L3-D128", "--png", str(png)]) == 0
    out = capsys.readouterr().out
    assert "1,024" in out
    assert "within" in out
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run(["bench", "memory", "goldfinch-L3-D128", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["this_model"][0]["tokens"] == 1024
    assert content["llama"][0]["bytes"] > content["this_model"][0]["bytes"]


def test_an_unknown_preset_is_refused(capsys):
    assert run(["bench", "memory", "goldfish-L3-D128"]) == 2
    assert "did you mean goldfinch" in capsys.readouterr().err


@pytest.fixture
def short(monkeypatch):
    """The machine's own speeds are measured on tiny tensors."""
    monkeypatch.setattr(speed_benchmark, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(speed_benchmark, "MIN_PRODUCT_FLOPS", 1)
    monkeypatch.setattr(speed_benchmark, "LENGTHS", (16, 64))
    monkeypatch.setattr(speed_benchmark, "PREFILL_TOKENS", 64)


def test_speed_of_a_users_own_model_is_shown_next_to_what_the_machine_can_do(short, small_run, goldfinch):
    out = goldfinch("bench", "speed", small_run, "--repeats", 1).out
    for promised in ("prefill 64", "decode at 16", "latents", "shared_keys", "keys_values", "GFLOP/s", "of weights"):
        assert promised in out


def test_speed_as_json_has_all_that_the_table_shows(short, small_run, goldfinch):
    content = json.loads(goldfinch("bench", "speed", small_run, "--repeats", 2, "--json").out)
    assert (content["name"], content["dtype"], content["latents"]) == (small_run, "float32", "bfloat16")
    assert len(content["prefill_seconds"]) == 2
    assert content["prefill_tokens"] == 64
    assert [(row["tokens"], row["level"]) for row in content["decodes"][:3]] == [
        (16, "latents"),
        (16, "shared_keys"),
        (16, "keys_values"),
    ]
    for field in ("product_share", "product_flops_per_second", "copy_bytes_per_second", "bound_seconds"):
        assert content[field] > 0
    assert content["max_difference"] < 1e-4


def test_speed_draws_nothing_and_says_so(goldfinch):
    assert "--png is for `bench memory`" in goldfinch("bench", "speed", "--png", "speed_benchmark.png", code=2).err
    assert "at least 1, not 0" in goldfinch("bench", "speed", "--repeats", 0, code=2).err
