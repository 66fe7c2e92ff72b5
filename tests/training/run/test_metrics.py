"""What runs record: metrics.jsonl and its plot at any length, TensorBoard and W&B from the same records."""

import json
import struct
import sys

import pytest
import torch

from goldfinch.errors import UserError
from goldfinch.model.accounting import account
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate
from goldfinch.training.optimizer.update_sizes import MAX_SAMPLE, UpdateSizes
from goldfinch.training.run.metrics import LossCurve, Metrics, read_metrics
from goldfinch.training.run.throughput import Throughput, known_peak_flops, peak_flops
from goldfinch.training.run.trackers import open_trackers
from goldfinch.training.trainer import Trainer


def test_a_steps_record_says_how_fast_how_far_and_at_which_rate(settings, silent):
    config = settings(steps=4, update_sizes_every=2, peak_tflops=1e-3)
    Trainer(config, silent()).train()
    steps = [record for record in read_metrics(config.output) if "loss" in record]
    assert [record["step"] for record in steps if "update_sizes" in record] == [2, 4]
    for record in steps:
        assert record["learning_rate"] > 0
        assert record["gradient_norm"] > 0
        flops = account(config.model, 16).training_flops_per_token * record["tokens_per_second"]
        assert record["mfu"] == pytest.approx(flops / 1e9, abs=1e-4)
    assert steps[-1]["update_sizes"].keys() == {"matrix", "vector", "decay"}


def test_update_sizes_are_the_changes_rms_over_the_weights(small_config, small_model):
    model = small_model(small_config("finch_c2", "gold"), torch.float32).requires_grad_(True)
    optimizer = build_optimizer(
        model, OptimizerConfig(weight_decay=0, learning_rate_multipliers=("head.*=0.5", "embedding.*=0"))
    )
    set_learning_rate(optimizer, 1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    sizes = UpdateSizes(optimizer)
    optimizer.step()
    measured = sizes.relative(sizes.squares())
    assert measured.keys() == {"matrix", "matrix x0.5", "vector", "decay"}
    change = (model.head.weight - before["head.weight"]).norm() / model.head.weight.norm()
    assert measured["matrix x0.5"] == pytest.approx(change.item(), rel=1e-3)
    base = model.blocks[0].time_mix.decay.base
    assert measured["decay"] == pytest.approx(2e-2 / base.square().mean().sqrt().item(), rel=1e-3)  # AdamW's first step


def test_update_sizes_of_large_tensors_are_estimated_from_a_sample():
    weight = torch.nn.Parameter(torch.randn(3, MAX_SAMPLE + 1))
    optimizer = torch.optim.SGD([{"params": [weight], "name": "matrix"}], lr=0.1)
    weight.grad = torch.randn_like(weight)
    sizes = UpdateSizes(optimizer)
    optimizer.step()
    squares = sizes.squares()
    assert squares[0] == pytest.approx(weight.numel() * 0.01, rel=0.05)
    assert sizes.relative(squares)["matrix"] == pytest.approx(0.1, rel=0.05)


def test_peaks_are_known_measured_or_given(settings):
    assert known_peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert known_peak_flops("NVIDIA H100 PCIe", torch.bfloat16) == 756e12
    assert known_peak_flops("NVIDIA A100-SXM4-80GB", torch.float32) == 19.5e12
    for unknown in ("NVIDIA A10G", "NVIDIA L40", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Some GPU"):
        assert known_peak_flops(unknown, torch.bfloat16) is None
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
    half = Throughput(settings(peak_tflops=2.0), torch.device("cpu"), torch.float32).of_step(1e-6)["mfu"]
    assert Throughput(settings(peak_tflops=1.0), torch.device("cpu"), torch.float32).of_step(1e-6)["mfu"] == (
        pytest.approx(2 * half, abs=1e-4)
    )
    four = Throughput(settings(peak_tflops=1.0), torch.device("cpu"), torch.float32, devices=4).of_step(1e-6)["mfu"]
    assert four == pytest.approx(half / 2, abs=1e-4)


def test_a_run_with_frozen_parameters_claims_no_mfu(settings):
    frozen = settings(optimizer=OptimizerConfig(learning_rate_multipliers=("blocks.0.*=0",)))
    assert Throughput(frozen, torch.device("cpu"), torch.float32).of_step(1.0).keys() == {"tokens_per_second"}


def test_the_plot_of_a_long_run_stays_small_and_true(monkeypatch):
    monkeypatch.setattr(LossCurve, "MAX_POINTS", 64)
    curve = LossCurve()
    for step in range(1, 10_001):
        curve.add({"step": step, "tokens": 10 * step, "loss": 1.0 + step})
    tokens, losses, means = curve.training()
    assert 32 <= len(tokens) == len(losses) == len(means) < 64
    width = tokens[0] // 10
    assert curve.label == f"training, mean of {width} steps"
    for number, (at, loss, mean) in enumerate(zip(tokens, losses, means, strict=True), start=1):
        assert at == 10 * width * number
        assert loss == pytest.approx(1.0 + width * number - (width - 1) / 2)
        if at > 5000:
            assert mean == pytest.approx(1.0 + at / 10 - 0.95 / 0.05)  # the lag of a running mean


def test_validations_over_different_texts_are_no_curve():
    curve = LossCurve()
    for step, text in enumerate([64, 64, 640], start=1):
        parts = [{"first": 1, "last": 8, "loss": 2.0, "tokens": text}]
        curve.add({"step": step, "tokens": step, "validation_loss": 3.0 - step / 10, "loss_by_position": parts})
    assert curve.validation() == {64: ([1, 2], [2.9, 2.8]), 640: ([3], [2.7])}


def test_a_resumed_run_drops_what_comes_again_and_refuses_broken_lines(tmp_path):
    lines = [json.dumps({"step": step, "tokens": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    Metrics(tmp_path, 3).add(step=4, tokens=4, loss=2.0)
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\nnonsense\n" + lines[1] + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not JSON"):
        Metrics(tmp_path, 3)


# trackers


class Dies:
    """Passes everything on, and fails after a step: nothing is closed."""

    def __init__(self, reporter, step):
        self._reporter, self._step = reporter, step

    def __getattr__(self, name):
        return getattr(self._reporter, name)

    def step(self, record, done):
        if record["step"] == self._step:
            raise RuntimeError("power failure")


def numbers_of(run, name):
    return [(record["step"], pytest.approx(record[name])) for record in read_metrics(run) if name in record]


def test_tensorboard_shows_each_step_once_after_a_crash_and_a_resume(settings, silent):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = settings(steps=6, save_every=2, tensorboard=True, update_sizes_every=3, sample_every=0)
    with pytest.raises(RuntimeError, match="power"):
        Trainer(config, Dies(silent(), 5)).train()
    Trainer(config, silent(), resume=True).train()
    events = accumulator.EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "mfu", "validation_loss"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == numbers_of(config.output, name), name
    assert [event.step for event in events.Scalars("update_sizes/matrix")] == [3, 6]
    assert "step" not in events.Tags()["scalars"]


def wandb_records(path):
    """What is in a `.wandb` file: after 7 bytes, blocks of 32 KiB of pieces with a checksum, a length and a kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_offline_has_each_step_once_after_a_crash_and_a_resume(settings, silent, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = settings(steps=6, save_every=2, wandb="goldfinch-tests", sample_every=0)
    with pytest.raises(RuntimeError, match="power"):
        Trainer(config, Dies(silent(), 5)).train()
    Trainer(config, silent(), resume=True).train()
    folders = sorted((config.output / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    assert len(folders) == 2
    (newest,) = folders[-1].glob("*.wandb")
    losses, ids = [], set()
    for record in wandb_records(newest):
        if record.HasField("run"):
            ids.add((record.run.run_id, record.run.project))
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if "loss" in values:
            losses.append((values["_step"], values["loss"]))
    assert losses == numbers_of(config.output, "loss")
    assert ids == {((config.output / "wandb-id").read_text(), "goldfinch-tests")}


@pytest.mark.parametrize(("field", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_names_its_extra(field, module, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'goldfinch\[{field}\]'"):
        open_trackers(settings(**{field: True if field == "tensorboard" else "project"}))
