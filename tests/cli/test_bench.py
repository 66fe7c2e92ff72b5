"""`goldfinch bench memory`: measured beside computed."""

import json

import pytest

from goldfinch.cli.main import run
from goldfinch.inference import memory_benchmark
from goldfinch.inference.memory_benchmark import llama_like, measure
from goldfinch.model.accounting import account
from goldfinch.presets import model_config

SMALL = (1024, 5000)


def test_what_is_measured_agrees_with_what_is_computed_and_what_does_not_fit_is_computed():
    config = model_config("goldfinch-L6-D128", 300)
    for shape in (config, llama_like(config)):
        costs = account(shape, id_bytes=2)
        room = costs.total_bytes(2000)
        fits, too_large = measure(shape, lengths=SMALL, room=room)
        assert fits.measured == pytest.approx(fits.computed, rel=0.01)
        assert fits.computed == costs.total_bytes(1024)
        assert (too_large.measured, too_large.total) == (None, costs.total_bytes(5000))


def test_latents_in_integers_take_less():
    config = model_config("goldfinch-L6-D512", 300)
    bf16, int8, int4 = (
        next(measure(config, latents, lengths=(100_000,), room=10**9)).measured
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


def test_a_preset_that_is_none_is_refused(capsys):
    assert run(["bench", "memory", "goldfish-L3-D128"]) == 2
    assert "did you mean goldfinch" in capsys.readouterr().err
