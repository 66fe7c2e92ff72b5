"""The table and the plots of `goldfinch compare`, from folders of runs."""

import json
import re

import pytest
import torch

from goldfinch.cli.main import run
from goldfinch.errors import UserError
from goldfinch.experiments.compare import measure as measurement
from goldfinch.experiments.compare.measure import Measurement, context_bytes, label
from goldfinch.experiments.compare.runs import find_runs
from goldfinch.experiments.compare.summary import Estimate, common_settings, compare_with_paper, summarize_models
from goldfinch.model.accounting import account
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.loss import PositionLoss

MEASURED = Measurement(
    loss_by_position=(PositionLoss(first=1, last=16, loss=1.0, tokens=16),), cache_bytes_per_token=10.0, state_bytes=5
)


def models_of(folder):
    runs = find_runs(folder)
    return summarize_models(runs, {label(run): MEASURED for run in runs})


def test_losses_are_means_over_seeds_with_standard_errors_and_gaps_are_paired(finished_run, tmp_path):
    for seed, (gold, llama) in enumerate([(2.0, 2.1), (2.4, 2.6), (2.2, 2.5)]):
        finished_run("gold", seed, "goldfinch-L3-D64", [5.0, gold])
        finished_run("llama", seed, "llama-L3-D64", [5.0, llama])
    best, worse = models_of(tmp_path / "runs")
    assert (best.name, worse.name) == ("gold", "llama")
    assert (best.loss.mean, worse.loss.mean) == pytest.approx((2.2, 2.4))
    assert best.loss.error == pytest.approx(0.2 / 3**0.5)
    assert best.bits_per_byte.mean == pytest.approx(1.1)
    # The differences 0.1, 0.2, 0.3 vary less than the losses do.
    assert worse.gap(best).mean == pytest.approx(0.2)
    assert worse.gap(best).error == pytest.approx(0.1 / 3**0.5)
    assert str(Estimate.from_values([2.0])) == "2.0000"


def test_the_papers_order_is_compared_pair_by_pair(finished_run, tmp_path):
    losses = {"goldfinch": 2.0, "finch": 2.2, "llama": 2.3, "goldfinch_uncompressed": 1.9, "own": 1.0}
    for kind, loss in losses.items():
        finished_run(kind, 0, f"{kind}-L6-D64" if kind != "own" else "finch-L6-D64", [loss])
    own = tmp_path / "runs" / "own" / "seed-0" / "config.json"
    content = json.loads(own.read_text())
    content["time_mixes"] = ["finch_c2"] * 3 + ["llama"] * 3
    own.write_text(json.dumps(content))
    comparison = compare_with_paper(models_of(tmp_path / "runs"))
    assert comparison.baseline.name == "goldfinch"
    assert [row.model.name for row in comparison.rows] == ["goldfinch_uncompressed", "goldfinch", "finch", "llama"]
    assert [(row.ablation_loss, row.large_loss) for row in comparison.rows] == [
        (None, 2.2762),
        (2.6582, 2.2762),
        (2.7191, 2.3856),
        (2.7125, 2.3905),
    ]
    names = [[(a.name, b.name) for a, b in pairs] for pairs in (comparison.same_order, comparison.other_order)]
    assert names == [[("goldfinch", "finch"), ("goldfinch", "llama")], [("finch", "llama")]]


def test_a_report_has_every_model_every_figure_and_both_plots(finished_run, tmp_path, capsys):
    finished_run("goldfinch", 0, "goldfinch-L3-D64", [5.0, 2.0])
    finished_run("goldfinch", 1, "goldfinch-L3-D64", [5.0, 2.2])
    finished_run("llama", 0, "llama-L3-D64", [5.0, 2.5])
    finished_run("llama", 1, "llama-L3-D64", [5.0, 4.0], steps=9)
    out = tmp_path / "report"
    assert run(["compare", str(tmp_path / "runs"), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2.1000 ± 0.1000" in shown
    assert "1 of 4 runs are not finished" in shown
    text = (out / "results.md").read_text()
    lines = dict(re.findall(r"^\| (goldfinch|llama) \| (\d.*) \|$", text.partition("## ")[0], flags=re.MULTILINE))
    gold, llama = (lines[name].split(" | ") for name in ("goldfinch", "llama"))
    costs = account(find_runs(tmp_path / "runs")[0].model, id_bytes=2)
    assert gold[:4] == ["2", "2.1000 ± 0.1000", "1.0500 ± 0.0500", f"{costs.parameters:,}"]
    assert gold[-2] == str(costs.cache_bytes_per_token)
    assert llama[:2] == ["1", "2.5000"]
    assert llama[-2] == str(2 * 2 * 64 * 3)
    assert "| llama | 2.5000 | +0.5000 | 2.7125 | +0.0543 | 2.3905 | +0.1143 |" in text
    assert "Pairs of kinds in the same order as in the paper's ablation (L12 D768): 1 of 1." in text
    assert "- llama/seed-1: 2 steps" in text
    assert "Not the same in all runs: steps" in text
    for plot in ("loss_by_token.png", "loss_by_position.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs" / "results.md").exists()
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "runs"), "-o", str(out), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["loss"]["mean"], first["parameters"]) == (
        "goldfinch",
        pytest.approx(2.1),
        costs.parameters,
    )
    assert (second["name"], second["losses"]) == ("llama", {"0": 2.5})


def test_settings_that_decide_a_result_and_differ_are_named(finished_run, tmp_path):
    optimizer = OptimizerConfig(learning_rate=2e-3)
    finished_run("one", 0, "llama-L3-D64", [2.0], optimizer=optimizer.to_dict())
    finished_run("two", 0, "goldfinch-L3-D64", [2.0], optimizer=optimizer.to_dict())
    clipped = optimizer.to_dict() | {"max_gradient_norm": 2.0}
    finished_run("other", 0, "finch-L3-D64", [2.0], optimizer=clipped)
    runs = {run.name: run for run in find_runs(tmp_path / "runs")}
    shared, differing = common_settings([runs["one"], runs["two"]])
    assert not differing
    assert shared["optimizer"] == optimizer
    assert common_settings(list(runs.values()))[1].keys() == {"optimizer"}


def test_weights_are_measured_once(finished_run, tmp_path, capsys):
    folder = finished_run("llama", 0, "llama-L3-D64", [2.0])
    args = ["compare", str(tmp_path / "runs")]
    assert run(args) == 0
    assert "measuring llama/seed-0" in capsys.readouterr().out
    assert run(args) == 0
    assert "measuring" not in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert run(args) == 0
    assert "measuring llama/seed-0" in capsys.readouterr().out


def test_loss_by_position_is_of_windows_from_all_over_the_validation_split(finished_run, tmp_path, monkeypatch):
    finished_run("llama", 0, "llama-L3-D64", [2.0])
    (run_,) = find_runs(tmp_path / "runs")
    every = torch.cat(measurement._validation_windows(run_, ()))
    monkeypatch.setattr(measurement, "POSITION_TOKENS", 5 * 16)
    chosen = torch.cat(measurement._validation_windows(run_, ()))
    assert chosen.shape == (5, 17)
    places = [(every == row).all(dim=1).nonzero()[0].item() for row in chosen]
    assert places == sorted(places)
    assert max(places) >= len(every) * 3 // 5


def test_data_that_has_moved_can_be_given(finished_run, tmp_path, data, capsys):
    finished_run("llama", 0, "llama-L3-D64", [2.0], data="no/such/folder")
    args = ["compare", str(tmp_path / "runs")]
    assert run(args) == 2
    assert "if its data has moved, give --data" in capsys.readouterr().err
    assert run([*args, "--data", str(data)]) == 0


def test_folders_that_hold_no_comparable_runs_are_refused(finished_run, tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        find_runs(tmp_path)
    finished_run("llama", 0, "llama-L3-D64", [2.0])
    finished_run("llama", 1, "llama-L3-D128", [2.0])
    with pytest.raises(UserError, match="are different models"):
        find_runs(tmp_path / "runs")


@pytest.mark.parametrize("plan", [("finch", "finch"), ("llama", "llama"), ("gptalpha",), ("finch_c2", "gold", "gold")])
def test_measured_cache_bytes_are_those_of_the_accounting(plan, small_config, small_model):
    config = small_config(*plan)
    model = small_model(config, torch.bfloat16)
    per_token, state = context_bytes(model, torch.arange(256) % 41)
    costs = account(config, id_bytes=2)
    assert per_token == costs.cache_bytes_per_token
    # Besides, a context keeps the outputs below GOLD of the tokens that token shifts reach back to.
    assert state == costs.state_bytes + (2 * config.num_gold_layers + 1) * config.width * 2


def test_measurements_that_are_damaged_are_reported(tmp_path, finished_run, capsys):
    finished_run("llama", 0, "llama-L3-D64", [2.0])
    (tmp_path / "runs" / measurement.FILE).write_text("[")
    assert run(["compare", str(tmp_path / "runs")]) == 2
    assert "remove it to measure again" in capsys.readouterr().err
