"""`goldfinch compare` trains: real processes, stopped and resumed."""

import fcntl
import json
import signal
import subprocess
import sys
import time

import pytest

from goldfinch.cli.arguments import parse_known
from goldfinch.cli.compare import Compare
from goldfinch.cli.main import run
from goldfinch.cli.train import resolve
from goldfinch.errors import UserError
from goldfinch.experiments.compare import launch
from goldfinch.experiments.compare.launch import RunSpec, Status, seconds_left
from goldfinch.experiments.compare.runs import Progress, find_runs, read_progress

MATCH = "--non-embedding-parameters"
KINDS = ("goldfinch-L3-D64", "finch-L3-D64")


@pytest.fixture
def command(data, tmp_path):
    """command(*flags, steps) -> arguments that train two kinds with two seeds in tmp_path/out."""

    def make(*flags, steps=40):
        settings = {"steps": steps, "sequence_length": 16, "batch-size": 2, "sample-every": 0, "validate-every": 20}
        settings |= {"non-embedding-parameters": 200_000, "num-seeds": 2, "dtype": "float32", "device": "cpu"}
        pairs = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        return ["compare", *KINDS, "--data", str(data), "-o", str(tmp_path / "out"), *pairs, *flags]

    return make


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    """So small a model gains nothing by more, and loses much where the cores are shared."""
    monkeypatch.setattr(launch, "_cores", lambda: 2)


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.slow
def test_what_was_stopped_is_resumed_and_what_is_finished_is_not_repeated(command, tmp_path, capsys):
    steps = 60
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "goldfinch", *command(steps=steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = [out / kind / "seed-0" for kind in KINDS]
    while min(read_progress(folder).step for folder in first) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=100)
    assert process.returncode == 130, shown
    assert "the same command resumes them" in shown
    stopped = [read_progress(folder).step for folder in first]
    assert all(step > 0 for step in stopped)
    assert min(stopped) < steps
    assert not (out / KINDS[0] / "seed-1").exists()
    before = [losses(folder) for folder in first]

    assert run(command(steps=steps)) == 0
    assert "± " in capsys.readouterr().out
    runs = find_runs(out)
    assert [(each.name, each.seed) for each in runs] == [(kind, seed) for kind in sorted(KINDS) for seed in (0, 1)]
    for each in runs:
        assert [step for step, _ in losses(each.folder)] == list(range(1, steps + 1))
        assert each.model.channel_width % 8 == 0
        assert each.final is not None
    for folder, old in zip(first, before, strict=True):
        assert losses(folder)[: len(old)] == old  # they were resumed, not started again

    written = [(each.folder / "metrics.jsonl").stat().st_mtime_ns for each in runs]
    assert run(command(steps=steps)) == 0
    assert [(each.folder / "metrics.jsonl").stat().st_mtime_ns for each in runs] == written

    assert run(command("--learning-rate", "1", steps=steps)) == 2  # as `goldfinch train` would refuse it
    assert run(command("--optimizer.learning-rate", "1e-3", steps=steps)) == 2
    assert "was started with optimizer.learning_rate 0.003, not 0.001" in capsys.readouterr().err


def test_a_run_that_fails_is_reported_and_the_others_continue(command, tmp_path, capsys):
    in_the_way = tmp_path / "out" / KINDS[0] / "seed-0"
    in_the_way.mkdir(parents=True)
    (in_the_way / "model.safetensors").write_text("mine")
    assert run(command("--num-seeds", "1", steps=2)) == 2
    shown = capsys.readouterr()
    assert f"{KINDS[0]}, seed 0 failed" in shown.out
    assert "exists: choose another output folder" in shown.out
    assert f"{KINDS[1]}, seed 0 finished: step 2 of 2" in shown.out
    assert "1 of 2 runs failed" in shown.err
    assert (in_the_way / "model.safetensors").read_text() == "mine"
    assert "finch-L3-D64" in (tmp_path / "out" / "results.md").read_text()


def test_no_two_processes_train_one_run(command, tmp_path, capsys):
    folder = tmp_path / "out" / KINDS[0]
    folder.mkdir(parents=True)
    with (folder / "seed-0.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(command(steps=2)) == 2
    assert "another process is training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name the models to train"),
        (["goldfinch-L3-D64"], "name the output folder"),
        (["goldfish-L3-D64", "-o", "out", "--data", "DATA"], "did you mean goldfinch"),
        (["finch-L3-D64", "finch-L3-D64", "-o", "out", "--data", "DATA"], "a model is named twice"),
        (
            ["finch-L3-D64", "finch-L3-D768", "-o", "out", "--data", "DATA", MATCH, "0"],
            "would train with sequence_length 1024",
        ),
        (["finch-L3-D64", "-o", "out", "--data", "DATA", "--seed", "3"], "give --num-seeds"),
        (["finch-L3-D64", "-o", "out", "--data", "DATA", "--stepz", "3"], "stepz"),
        (["finch-L3-D64", "-o", "out"], "data"),
        (["finch-L3-D64", "-o", "out", "--data", "DATA", "--jobs", "0"], "at least 1"),
        (["DATA", "--steps", "3"], "--steps is for training"),
        (["DATA"], "holds no runs"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(args, message, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["compare", *(str(data) if arg == "DATA" else arg for arg in args)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_is_only_resumed_with_the_settings_that_it_was_started_with(command):
    args = [arg for arg in command("--num-seeds", "1")[1:] if arg != KINDS[1]]
    parsed, flags = parse_known(Compare, "compare", args)
    (spec,) = parsed.specs(parsed.output, flags)
    content = json.loads(json.dumps(resolve(list(spec.train_args)).settings.to_dict()))
    spec.folder.mkdir(parents=True)
    (spec.folder / "training.json").write_text(json.dumps(content))
    parsed.specs(parsed.output, flags)
    content["optimizer"]["learning_rate"] = 1.0
    (spec.folder / "training.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"was started with optimizer\.learning_rate 1\.0, not 0\.003"):
        parsed.specs(parsed.output, flags)


def test_the_time_left_is_that_of_all_runs_at_the_speed_of_each_model(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)

    def status(name, state, step, began=None):
        spec = RunSpec(name=name, seed=0, folder=tmp_path, train_args=(), resume_args=(), steps=100)
        return Status(spec=spec, state=state, progress=Progress(step=step), began=began)

    running = status("slow", "running", 50, began=(0.0, 25))  # 4 s a step, 50 to go
    assert seconds_left([status("slow", "waiting", 0)], 2) is None
    assert seconds_left([running], 2) == 200
    assert seconds_left([running, status("slow", "waiting", 0), status("other", "finished", 100)], 2) == 400
    assert seconds_left([running, status("slow", "waiting", 0), status("other", "waiting", 50)], 2) == 400
    assert seconds_left([running, status("slow", "waiting", 0), status("other", "waiting", 50)], 1) == 800


def test_the_end_of_metrics_is_read_while_they_are_written(tmp_path):
    assert read_progress(tmp_path) == Progress()
    lines = [json.dumps({"step": n, "loss": 1 / n, "tokens_per_second": n}) for n in range(1, 1001)]
    lines.insert(500, json.dumps({"step": 500, "validation_loss": 2.0}))
    lines.append(json.dumps({"step": 1000, "validation_loss": 1.5}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1001, "lo')
    progress = read_progress(tmp_path)
    assert (progress.step, progress.loss, progress.tokens_per_second) == (1000, 0.001, 1000)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 9.0}\n{"step": 1002, "tokens_per_second": 5, "skipped_steps": 1}\n')
    assert (read_progress(tmp_path).step, read_progress(tmp_path).loss) == (1002, None)
    assert (progress.validated, progress.validation_loss) == (1000, 1.5)
