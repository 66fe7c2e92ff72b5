"""What a run does and writes, and that it can be stopped, resumed and trusted."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reporters import StopAfter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

import goldfinch as gf
from goldfinch.checkpoint import safetensors_file
from goldfinch.data.batches import sequential_windows
from goldfinch.data.shards import TokenDataset
from goldfinch.errors import UserError
from goldfinch.training.divergence import Diverged
from goldfinch.training.interruption import Interrupted
from goldfinch.training.run.checkpoint import list_checkpoints
from goldfinch.training.run.folder import read_settings
from goldfinch.training.trainer import Trainer


def test_a_run_learns_and_writes_everything_it_promises(settings, silent):
    config, seen = settings(steps=30, validate_every=10), silent()
    result = Trainer(config, seen).train()
    run = config.output
    assert seen.losses[0] > 5.0
    assert seen.losses[-1] < 3.2
    assert [step for step, _ in seen.validations] == [10, 20, 30]
    assert [step for step, _ in seen.samples] == list(range(3, 31, 3))
    assert read_settings(run) == config
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert seen.samples[-1][1] in (run / "samples.txt").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records if "loss" in record] == seen.losses
    assert records[-1]["validation_loss"] == result.loss
    lm = gf.load(run)
    assert lm.generate("the whale", max_tokens=5, temperature=0).text


def test_validation_is_the_mean_loss_of_the_whole_split_per_token_and_per_byte(settings, silent):
    config = settings(steps=2, max_validation_tokens=0)
    result = Trainer(config, silent()).train()
    model = gf.load(config.output).model
    dataset = TokenDataset.open(Path(config.data[0]), "validation")
    nats, text_bytes = [], 0
    with torch.no_grad():
        for window in sequential_windows(dataset, config.sequence_length, 1):
            nats.append(F.cross_entropy(model(window[:, :-1])[0][0], window[0, 1:], reduction="none"))
            text_bytes += int((window[0, 1:] < 256).sum())  # a byte each, but for the end of text
    nats = torch.cat(nats)
    assert result.tokens == len(dataset) - 1 == len(nats)
    assert result.loss == pytest.approx(nats.mean().item(), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats.sum().item() / text_bytes / 0.6931471805599453, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_last_bit(settings, silent, tmp_path, dtype):
    whole, parts = silent(), silent()
    Trainer(settings(output=tmp_path / "whole", dtype=dtype), whole).train()
    config = settings(output=tmp_path / "parts", dtype=dtype)
    with pytest.raises(Interrupted, match="--resume"):
        Trainer(config, StopAfter(3, parts)).train()
    Trainer(config, parts, resume=True).train()
    assert parts.losses == whole.losses
    weights = [gf.load(tmp_path / name).model.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_killed_run_resumes_from_the_last_checkpoint_and_logs_each_step_once(settings, silent):
    seen = silent()

    class Crash(StopAfter):
        def step(self, record, done):
            super().step(record, done)
            if record["step"] == 5:
                raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power"):
        Trainer(settings(), Crash(None, silent())).train()
    Trainer(settings(), seen, resume=True).train()
    assert seen.started == (4, 6)
    lines = (settings().output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "learning_rate" in line] == [1, 2, 3, 4, 5, 6]


def test_a_run_by_the_clock_ends_in_time_at_its_final_learning_rate(settings, silent, monkeypatch):
    # A clock of our own, read once a step: each step takes three seconds on any machine.
    monkeypatch.setattr("goldfinch.training.trainer.time", SimpleNamespace(monotonic=itertools.count(0, 3).__next__))
    config = settings(steps=10**6, max_minutes=0.5, sample_every=0, validate_every=10**6, save_every=10**6)
    seen = silent()
    Trainer(config, seen).train()
    assert len(seen.losses) == 10
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert rates[-1] < 0.3 * max(rates)
    assert gf.load(config.output)


def test_accumulated_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(settings, silent, tmp_path):
    first = []
    for name, size in (("whole", 0), ("micro", 1)):
        config = settings(steps=1, micro_batch_size=size, output=tmp_path / name)
        Trainer(config, silent()).train()
        first.append(json.loads((config.output / "metrics.jsonl").read_text().splitlines()[0]))
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-6)
    assert first[1]["gradient_norm"] == pytest.approx(first[0]["gradient_norm"], rel=1e-5)


def test_broken_weights_stop_the_run_with_the_culprit_and_are_not_saved(settings, silent):
    class Poison(StopAfter):
        def step(self, record, done):
            self._reporter.step(record, done)
            if record["step"] == 3:
                with torch.no_grad():
                    trainer._model.blocks[1].time_mix.key_adapter.b[0, 0, 0] = float("nan")

    seen = silent()
    trainer = Trainer(settings(sample_every=0), Poison(None, seen))
    message = r"step 4: loss nan.*the weight blocks\.1\.time_mix\.key_adapter\.b.*batch 3.*step-00000002"
    with pytest.raises(Diverged, match=message):
        trainer.train()
    assert len(seen.losses) == 3
    assert list_checkpoints(settings().output)[-1].name == "step-00000002"
    # The same at a step that saves: the newest file stays the good one.
    trainer = Trainer(settings(save_every=1), Poison(None, seen), resume=True)
    with pytest.raises(Diverged, match="step-00000002"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in gf.load(settings().output).model.parameters())


def test_an_overflow_is_named_by_the_module_where_it_appears(settings, silent):
    class Grow(StopAfter):
        def step(self, record, done):
            self._reporter.step(record, done)
            with torch.no_grad():
                trainer._model.blocks[0].channel_mix.key.weight.fill_(1e30)

    trainer = Trainer(settings(sample_every=0, max_skipped_steps=0), Grow(None, silent()))
    with pytest.raises(Diverged, match=r"the output of blocks\.0\.channel_mix.*weights before this step are in"):
        trainer.train()


class _Spike(StopAfter):
    """Makes the gradients of some steps infinite."""

    def __init__(self, steps, reporter):
        super().__init__(None, reporter)
        self.steps = steps

    def start(self, config, step, steps):
        self._reporter.start(config, step, steps)
        weight = self.trainer._parameters["head.weight"]
        weight.register_hook(lambda gradient: gradient * (float("inf") if self._next in self.steps else 1))
        self._next = step + 1

    def step(self, record, done):
        self._reporter.step(record, done)
        self._next = record["step"] + 1


def trained_with_spikes(config, steps, seen):
    reporter = _Spike(steps, seen)
    reporter.trainer = Trainer(config, reporter)
    return reporter.trainer.train()


def test_a_spike_is_skipped_and_counted_and_changes_nothing(settings, silent):
    config, seen = settings(save_every=1, keep_checkpoints=6, sample_every=0), silent()
    trained_with_spikes(config, {3}, seen)
    assert [loss is None for loss in seen.losses] == [False, False, True, False, False, False]
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "learning_rate" in record]
    assert [record["skipped_steps"] for record in steps] == [0, 0, 1, 1, 1, 1]
    assert "loss" not in steps[2]
    checkpoints = list_checkpoints(config.output)
    before, after = (load_file(checkpoints[i] / "shard-00000.safetensors") for i in (1, 2))
    assert all(torch.equal(before[name], after[name]) for name in before)
    progress = json.loads((checkpoints[-1] / "progress.json").read_text())
    assert (progress["step"], progress["skipped_steps"], progress["skipped_in_a_row"]) == (6, 1, 0)


def test_too_many_spikes_in_a_row_stop_the_run_and_name_the_tensor(settings, silent):
    seen = silent()
    with pytest.raises(
        Diverged, match=r"step 5: .*after 2 skipped steps; first bad tensor: the gradient of head\.weight"
    ):
        trained_with_spikes(settings(max_skipped_steps=2, steps=8), {1, 3, 4, 5}, seen)
    assert [loss is None for loss in seen.losses] == [True, False, True, True]


def test_old_checkpoints_go_once_a_newer_one_is_whole(settings, silent):
    Trainer(settings(keep_checkpoints=2), silent()).train()
    assert [path.name for path in list_checkpoints(settings().output)] == ["step-00000004", "step-00000006"]


def test_checkpoints_of_some_steps_stay_for_ever(settings, silent):
    Trainer(settings(keep_checkpoints=1, keep_every=3, save_every=1, steps=8), silent()).train()
    names = [path.name for path in list_checkpoints(settings().output)]
    assert names == ["step-00000003", "step-00000006", "step-00000008"]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: cut_off(path / "shard-00000.safetensors"),
        lambda path: (path / "shard-00000.safetensors").unlink(),
        lambda path: cut_off(path / "index.json"),
        lambda path: (path / "progress.json").unlink(),
        lambda path: flip_a_bit(path / "shard-00000.safetensors"),
        lambda path: flip_a_bit(path / "progress.json"),
    ],
    ids=["cut off", "missing", "index", "progress", "a bit of the weights", "a bit of the progress"],
)
def test_a_damaged_checkpoint_is_reported_and_skipped(settings, silent, damage):
    whole, seen = silent(), silent()
    Trainer(settings(sample_every=0), whole).train()
    damage(list_checkpoints(settings().output)[-1])
    Trainer(settings(sample_every=0), seen, resume=True).train()
    assert seen.started == (4, 6)
    assert seen.losses == whole.losses[4:]
    assert any("step-00000006 is damaged" in notice for notice in seen.notices)
    # What takes its place is whole.
    again = silent()
    Trainer(settings(sample_every=0, steps=7), again, resume=True)
    assert again.notices == []


def test_a_run_without_any_whole_checkpoint_says_what_to_do(settings, silent):
    Trainer(settings(sample_every=0, keep_checkpoints=1), silent()).train()
    (only,) = list_checkpoints(settings().output)
    cut_off(only / "shard-00000.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints is complete: remove that folder"):
        Trainer(settings(), silent(), resume=True)


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(settings, silent):
    Trainer(settings(sample_every=0, keep_checkpoints=1), silent()).train()
    (only,) = list_checkpoints(settings().output)
    (only / "shard-00000.safetensors").rename(only.parent / "step-00000006.safetensors")
    shutil.rmtree(only)
    with pytest.raises(UserError, match=r"step-00000006\.safetensors is of an earlier version"):
        Trainer(settings(), silent(), resume=True)


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(settings, silent, monkeypatch):
    real = safetensors_file.save_file

    def full(tensors, path, metadata=None):
        if "00000006" in str(path):
            path.write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(UserError, match=r"step-00000006.*No space left.*the checkpoints before it are complete"):
        Trainer(settings(), silent()).train()
    folder = settings().output / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_a_run_without_validations_has_one_at_the_end(settings, silent):
    seen = silent()
    Trainer(settings(validate_every=0, sample_every=0), seen).train()
    assert [(step, result.whole_set) for step, result in seen.validations] == [(6, True)]


def test_a_run_is_never_overwritten(settings, silent):
    Trainer(settings(), silent()).train()
    with pytest.raises(UserError, match="--resume"):
        Trainer(settings(), silent())
    (settings().output / "training.json").unlink()
    with pytest.raises(UserError, match=r"config\.json exists"):
        Trainer(settings(), silent())


def test_data_of_a_larger_vocabulary_is_refused(settings, silent):
    model = dataclasses.replace(settings().model, vocab_size=100)
    with pytest.raises(UserError, match=r"257 ids, the model only 100: set --model\.vocab-size 257"):
        Trainer(settings(model=model), silent())


def test_a_text_shorter_than_the_context_is_refused(settings, silent):
    with pytest.raises(UserError, match="sequence-length"):
        Trainer(settings(sequence_length=10**6), silent())
