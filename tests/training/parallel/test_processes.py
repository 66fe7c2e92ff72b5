"""Runs of several processes: the same losses, the same checkpoints, and none continues alone."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import several
import torch
from safetensors.torch import load_file

import goldfinch as gf
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.run.checkpoint import list_checkpoints

TIGHT = {"rtol": 1e-5, "atol": 1e-5}
EXACT = {"rtol": 0, "atol": 0}
# With the usual eps, Adam makes of a gradient of 1e-9, which is rounding alone, a step as large as any other.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2, eps=1e-4)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """command(count, *args, fault=None) -> how `goldfinch ARGS` ended in `count` processes."""
    numbers = itertools.count()

    def run(count, *args, fault=None):
        logs = tmp_path_factory.mktemp(f"logs-{next(numbers)}")
        return several.goldfinch(count, args, logs, fault)

    return run


@pytest.fixture(scope="module")
def train(command, run_settings):
    """train(count, output, fault=None, **fields) -> how a new run in `output` ended."""

    def start(count, output, fault=None, **fields):
        config = run_settings(output, **{"optimizer": OPTIMIZER} | fields)
        file = output.with_suffix(".json")
        file.write_text(json.dumps(config.to_dict()))
        return command(count, "train", "--config", file, fault=fault)

    return start


@pytest.fixture(scope="module")
def whole_run(train, tmp_path_factory):
    """whole_run(count) -> the folder of an uninterrupted run of `count` processes."""
    runs = {}

    def run(count):
        if count not in runs:
            output = tmp_path_factory.mktemp("whole") / f"run-{count}"
            assert_ended_well(train(count, output))
            runs[count] = output
        return runs[count]

    return run


def assert_ended_well(ended):
    assert set(ended.exit_codes) == {0}, ended.printed


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [record.get("loss", record.get("validation_loss")) for record in records(run)]


def stored(checkpoint):
    """Every tensor of a checkpoint, put together from its parts as the index says."""
    index = json.loads((checkpoint / "index.json").read_text())
    files = {file: load_file(checkpoint / file) for file in index["files"]}
    tensors = {}
    for name, entry in index["tensors"].items():
        parts = sorted(entry["parts"], key=lambda part: part["offset"])
        pieces = [files[part["file"]][name] for part in parts]
        tensors[name] = torch.cat(pieces) if entry["shape"] else pieces[0]
    return tensors


def assert_same_run(actual, expected, **tolerance):
    torch.testing.assert_close(losses(actual), losses(expected), **tolerance)
    for read in (lambda run: stored(list_checkpoints(run)[-1]), lambda run: gf.load(run).model.state_dict()):
        torch.testing.assert_close(dict(read(actual)), dict(read(expected)), **tolerance)


def assert_said_once(ended, text):
    said = [text in printed for printed in ended.printed]
    assert said == [True] + [False] * (len(said) - 1), ended.printed


def test_two_processes_learn_the_same_as_one_and_the_first_alone_speaks(train, whole_run, tmp_path):
    ended = train(2, tmp_path / "run", micro_batch_size=1)
    assert_ended_well(ended)
    assert_same_run(tmp_path / "run", whole_run(1), **TIGHT)
    assert "validation" in ended.printed[0]
    assert ended.printed[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize(("count", "num_replicas"), [(4, 1), (4, 2), (2, 2)])
def test_so_do_four_and_groups_that_each_hold_the_whole_model(count, num_replicas, train, whole_run, tmp_path):
    run = tmp_path / "run"
    assert_ended_well(train(count, run, num_replicas=num_replicas, activation_checkpointing=True))
    assert_same_run(run, whole_run(1), **TIGHT)


def test_two_processes_divide_by_the_targets_of_both_where_documents_are_kept_apart(train, many_documents, tmp_path):
    fields = {"data": (str(many_documents),), "document_resets": True, "micro_batch_size": 1}
    for count in (1, 2):
        assert_ended_well(train(count, tmp_path / f"run-{count}", **fields))
    assert_same_run(tmp_path / "run-2", tmp_path / "run-1", **TIGHT)
    one, two = (records(tmp_path / f"run-{count}")[-1]["loss_by_document_position"] for count in (1, 2))
    assert [part["tokens"] for part in two] == [part["tokens"] for part in one]
    torch.testing.assert_close([part["loss"] for part in two], [part["loss"] for part in one], **TIGHT)


@pytest.mark.slow
def test_two_processes_in_bf16_come_near_to_one(train, tmp_path):
    for count in (1, 2):
        assert_ended_well(train(count, tmp_path / f"run-{count}", dtype="bfloat16"))
    torch.testing.assert_close(losses(tmp_path / "run-2"), losses(tmp_path / "run-1"), rtol=0.01, atol=0)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_one_of_two_processes_was_asked_to_stop_resumes_with_any_number(
    count, train, command, whole_run, tmp_path
):
    run = tmp_path / "run"
    ended = train(2, run, several.AtStep(3, 1, several.terminate))
    assert ended.exit_codes == [130, 130], ended.printed
    assert_said_once(ended, "resume with: goldfinch train --resume")
    assert_ended_well(command(count, "train", "--resume", run))
    assert_same_run(run, whole_run(2), **EXACT if count == 2 else TIGHT)


@pytest.mark.slow
def test_a_stream_and_a_folder_resume_with_any_number_of_processes(stream, data, train, command, tmp_path):
    fields = {"data": (f"{stream}=2", f"{data}=1")}
    assert_ended_well(train(1, tmp_path / "whole", **fields))
    ended = train(2, tmp_path / "run", several.AtStep(5, 1, several.terminate), **fields)
    assert ended.exit_codes == [130, 130], ended.printed
    assert_ended_well(command(4, "train", "--resume", tmp_path / "run"))
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "whole"), **TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        several.AtStep(5, 1, several.kill),
        several.AtStep(6, 0, several.kill),
        several.InSave(6, (1,), several.die),
        several.InSave(6, (0, 1), several.die),
    ],
    ids=["one", "the first", "one in a save", "all in a save"],
)
def test_killed_processes_lose_nothing(fault, train, command, whole_run, tmp_path):
    run = tmp_path / "run"
    ended = train(2, run, fault)
    assert -signal.SIGKILL in ended.exit_codes
    assert 0 not in ended.exit_codes
    survivors = [printed for code, printed in zip(ended.exit_codes, ended.printed, strict=True) if code > 0]
    assert all("another process of the run has ended" in printed for printed in survivors), ended.printed
    ended = command(2, "train", "--resume", run)
    assert_ended_well(ended)
    # Where it was killed in step 5, the checkpoint of step 4 may still have been on its way.
    steps = "24" if isinstance(fault, several.AtStep) else "4"
    assert re.search(rf"resuming after step [{steps}] of 6", ended.printed[0])
    assert_same_run(run, whole_run(2), **EXACT)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_stops_all_and_what_was_saved_is_whole(train, command, whole_run, tmp_path):
    run = tmp_path / "run"
    ended = train(2, run, several.InSave(4, (1,), several.find_the_disk_full))
    assert ended.exit_codes == [2, 2], ended.printed
    assert_said_once(ended, "No space left on device")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert_ended_well(command(2, "train", "--resume", run))
    assert_same_run(run, whole_run(2), **EXACT)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_is_skipped_in_all(train, tmp_path):
    ended = train(2, tmp_path / "run", several.AtStep(3, 1, several.spike))
    assert_ended_well(ended)
    steps = [record for record in records(tmp_path / "run") if "learning_rate" in record]
    assert [record.get("loss") is None for record in steps] == [False, False, True, False, False, False]
    assert steps[-1]["skipped_steps"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks", "culprit", "saved"),
    [
        (several.break_a_weight, "the weight blocks.1.time_mix.output.weight; ", ["step-00000002"]),
        (several.break_a_gradient, "the gradient of head.weight; ", ["step-00000002"]),
    ],
)
def test_what_breaks_in_the_part_of_one_process_is_named(breaks, culprit, saved, train, tmp_path):
    ended = train(2, tmp_path / "run", several.AtStep(3, 1, breaks), max_skipped_steps=0)
    assert ended.exit_codes == [2, 2], ended.printed
    assert_said_once(ended, f"first bad tensor: {culprit}")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == saved


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"batch_size": 3}, "batch_size 3 cannot be shared"), ({"num_replicas": 3}, "num_replicas 3 must divide")],
    ids=["batch", "num_replicas"],
)
def test_settings_that_do_not_suit_the_processes_are_refused_once(fields, message, train, tmp_path):
    ended = train(2, tmp_path / "run", **fields)
    assert ended.exit_codes == [2, 2], ended.printed
    assert_said_once(ended, message)
    assert not (tmp_path / "run").exists()


def test_a_missing_run_is_told_once(command, tmp_path):
    ended = command(2, "train", "--resume", tmp_path / "nowhere")
    assert ended.exit_codes == [2, 2], ended.printed
    assert_said_once(ended, "does not exist")


@pytest.mark.slow
def test_torchrun_starts_a_run_and_its_end_is_saved(run_settings, tmp_path):
    """The real torchrun, which passes SIGTERM on to all processes."""
    output = tmp_path / "run"
    config = run_settings(output, steps=100_000, save_every=100_000, validate_every=100_000, sample_every=0)
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "goldfinch", "train", "--config", tmp_path / "run.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "loss" in line and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            break
    printed.append(process.communicate(timeout=several.TIME_LIMIT)[0])
    text = "".join(printed)
    assert text.count("everything saved; resume with: goldfinch train --resume") == 1, text
    (checkpoint,) = list_checkpoints(output)
    assert json.loads((checkpoint / "progress.json").read_text())["step"] == len(losses(output))
