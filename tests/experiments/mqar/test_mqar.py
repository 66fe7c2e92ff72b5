"""The MQAR task is what its docstring says, models learn it, and a sweep resumes where it stopped."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.cli.main import run
from goldfinch.errors import UserError
from goldfinch.experiments.mqar.task import MqarTask
from goldfinch.experiments.mqar.train import TEST, TRAINING, MqarRun, best_accuracies, read_results, sweep, train_run


@st.composite
def tasks(draw):
    pairs = draw(st.integers(1, 9))
    return MqarTask(vocab_size=2 * draw(st.integers(pairs, 40)), length=draw(st.integers(4 * pairs, 80)), pairs=pairs)


@settings(max_examples=30)
@given(tasks(), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_every_query_has_one_answer_that_stands_among_the_pairs(task, seed, step):
    half, first = task.vocab_size // 2, 2 * task.pairs
    batch = task.batch(3, seed, TRAINING, step)
    assert batch.ids.shape == (3, task.length)
    for ids, positions, values in zip(*(part.tolist() for part in batch), strict=True):
        pairs = dict(zip(ids[0:first:2], ids[1:first:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == task.pairs
        assert max(pairs) < half <= min(pairs.values())
        assert max(ids) < task.vocab_size
        # Each key comes twice: in its pair and as its query, at every other place after the pairs.
        assert [ids[position] for position in positions] == ids[0:first:2]
        assert [pairs[ids[position]] for position in positions] == values
        assert all(ids.count(key) == 2 for key in pairs)
        assert all(position >= first and position % 2 == 0 for position in positions)


def test_batches_are_a_function_of_seed_stream_and_step_alone():
    task = MqarTask(vocab_size=64, length=32, pairs=4)
    places = [(0, TRAINING, 0), (1, TRAINING, 0), (0, TEST, 0), (0, TRAINING, 1)]
    batches = [task.batch(4, *place).ids for place in places]
    assert all(torch.equal(task.batch(4, *place).ids, ids) for place, ids in zip(places, batches, strict=True))
    assert len({tuple(ids.flatten().tolist()) for ids in batches}) == 4


def test_queries_stand_by_the_power_law():
    task = MqarTask(vocab_size=64, length=66, pairs=1)
    places = (task.batch(20_000, 0, TRAINING, 0).positions.flatten() - 2) // 2 + 1
    weights = torch.arange(1, 33, dtype=torch.float64) ** (0.01 - 1)
    expected = weights / weights.sum()
    for place in (1, 2, 5, 20, 32):
        share = float((places == place).float().mean())
        wanted = float(expected[place - 1])
        assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 20_000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"length": 15}, "at least 16 tokens"), ({"vocab_size": 7}, "even vocabulary"), ({"vocab_size": 6}, "8 or more")],
)
def test_tasks_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MqarTask(**{"vocab_size": 8, "length": 16, "pairs": 4} | fields)


def mqar_run(**fields):
    task = MqarTask(vocab_size=32, length=16, pairs=2)
    defaults = {"kind": "goldfinch", "width": 16, "task": task, "learning_rate": 1e-2, "steps": 200}
    return MqarRun(**defaults | {"batch_size": 32, "target_accuracy": 0.99, "seed": 0} | fields)


def test_a_goldfinch_learns_to_recall_in_some_steps_and_not_at_once():
    assert train_run(mqar_run(steps=1)).accuracy < 0.3
    result = train_run(mqar_run())
    assert result.accuracy >= 0.99
    assert result.num_steps < 200
    assert train_run(mqar_run()).num_steps == result.num_steps


def test_a_sweep_trains_only_what_is_missing_and_repeats_it_exactly(tmp_path):
    groups = [
        [mqar_run(kind=kind, steps=2, learning_rate=rate) for rate in (1e-2, 1e-3)] for kind in ("finch", "llama")
    ]
    on_result = []
    first = sweep(groups, tmp_path, 1, on_result.append)
    assert [result.run for result in first] == [each for group in groups for each in group]
    assert len(on_result) == 4
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:40])  # as a power cut would leave it
    again = sweep(groups, tmp_path, 2, on_result.append)
    assert len(on_result) == 5
    assert [result.accuracy for result in again] == [result.accuracy for result in first]
    assert len(read_results(path)) == 4


def test_no_more_rates_are_tried_when_one_solves_the_task(tmp_path):
    groups = [[mqar_run(target_accuracy=0.0, learning_rate=rate) for rate in (1e-2, 1e-3)]]
    results = sweep(groups, tmp_path, 1, lambda result: None)
    assert [result.run.learning_rate for result in results] == [1e-2]


def test_the_best_rate_counts_and_seeds_are_averaged(tmp_path):
    accuracies = {(0, 1e-2): 0.2, (0, 1e-3): 0.6, (1, 1e-2): 0.8, (1, 1e-3): 0.1}
    results = [
        train_run(mqar_run(steps=1, target_accuracy=0.0, seed=seed, learning_rate=rate)) for seed, rate in accuracies
    ]
    results = [
        type(each)(run=each.run, accuracy=accuracy, num_steps=1, seconds=1.0)
        for each, accuracy in zip(results, accuracies.values(), strict=True)
    ]
    assert best_accuracies(results) == {("goldfinch", 16): {results[0].run.task: pytest.approx(0.7)}}


def test_the_command_writes_a_table_and_a_plot_and_resumes(tmp_path, capsys):
    args = ["experiment", "mqar", "-o", str(tmp_path), "--tasks", "16,2", "16,3", "--widths", "16", "--steps", "1"]
    args += ["--kinds", "finch", "goldfinch", "--vocab-size", "32", "--learning-rates", "0.01", "--batch-size", "4"]
    assert run(args) == 0
    assert capsys.readouterr().err.count("after 1 steps") == 4
    text = (tmp_path / "results.md").read_text()
    assert "| model | width | 16, 2 | 16, 3 |" in text
    assert text.count("\n| finch | 16 |") == text.count("\n| goldfinch | 16 |") == 1
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert run(args) == 0
    assert "after" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "64"], "give LENGTH,PAIRS"),
        (["--kinds", "lama"], "did you mean llama"),
        (["--widths", "100"], "width 100 must be a multiple"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(flags, message, tmp_path, capsys):
    assert run(["experiment", "mqar", "-o", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
