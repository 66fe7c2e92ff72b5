"""Streams: one order whatever reads it, exact resumption anywhere, and an end without anything left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import psutil
import pytest
import torch

from goldfinch.cli.data import main
from goldfinch.data import tokenizing
from goldfinch.data.batches import Batches
from goldfinch.data.shard_writer import write_dataset
from goldfinch.data.shards import Index, TokenDataset
from goldfinch.data.stream import Stream, StreamReader
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.data.training_data import TrainingData
from goldfinch.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'goldfinch[datasets]'")

TEXTS = [f"document {i}: " + chr(97 + i % 26) * (i % 23) for i in range(60)]
# Two rows of these have no text.
ROWS = [*TEXTS[:3], None, *TEXTS[3:20], "", *TEXTS[20:]]
WINDOW, BATCH = 16, 6


@pytest.fixture(autouse=True)
def nothing_of_ours_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Small chunks, so that a stream of a few documents has many.
    monkeypatch.setattr(tokenizing, "CHUNK_CHARACTERS", 40)


@pytest.fixture(params=["json", "parquet", "arrow"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The rows, in two files or in what `save_to_disk` writes."""
    path = tmp_path / request.param
    path.mkdir()
    table = {"text": ROWS, "number": list(range(len(ROWS)))}
    if request.param == "arrow":
        datasets.Dataset.from_dict(table).save_to_disk(path, num_shards=2)
        return path
    for name, part in (("0", slice(0, 33)), ("1", slice(33, None))):
        data = datasets.Dataset.from_dict({column: values[part] for column, values in table.items()})
        if request.param == "json":
            data.to_json(path / f"{name}.jsonl")
        else:
            data.to_parquet(path / f"{name}.parquet", batch_size=7)
    return path


@pytest.fixture
def rows_in_json(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    path.mkdir()
    (path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    return path


def goldfinch_data(*args: object) -> None:
    main([str(arg) for arg in args])


def stream(folder: Path | str, output: Path, *args: object) -> Path:
    given = ("--tokenizer", "bytes", "--validation-documents", 4, "--shuffle-windows", 7, *args)
    goldfinch_data("stream", folder, "-o", output, *given)
    return output


def batches(directory: Path, num_workers: int = 0, batch_size: int = BATCH, **share: int) -> Batches:
    data = TrainingData.open([str(directory)])
    return data.batches(WINDOW, batch_size, seed=5, num_workers=num_workers, **share)


def workers_of(process: psutil.Process | None = None) -> list[psutil.Process]:
    """Its processes that tokenise; of this one if none is given."""
    children = (process or psutil.Process()).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]  # of other tests
    return [child for child in alive if "goldfinch.data.tokenizing" in child.cmdline()]


def steps(source: Batches, numbers: range) -> torch.Tensor:
    try:
        return torch.stack([source.batch(step) for step in numbers])
    finally:
        source.close()


def test_the_first_documents_are_for_validation_and_the_rest_is_streamed_in_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream(folder, tmp_path / "d")
    assert "streams" in capsys.readouterr().out
    validation = TokenDataset.open(tmp_path / "d", "validation")
    ids = validation.tokens(0, len(validation)).tolist()
    assert bytes(id for id in ids if id < 256).decode() == "".join(TEXTS[:4])
    assert ids.count(256) == 4
    described = Index.load(tmp_path / "d").stream
    assert described == Stream(dataset=str(folder), skip=5, shuffle_windows=7)
    assert list(islice(StreamReader(described), 56)) == TEXTS[4:]
    goldfinch_data("verify", tmp_path / "d")
    assert "train: streamed from" in capsys.readouterr().out


def test_every_token_comes_once_an_epoch_in_windows_that_share_one(rows_in_json: Path, tmp_path: Path) -> None:
    drawn = steps(batches(stream(rows_in_json, tmp_path / "d")), range(20)).flatten(0, 1)
    row = list(chain.from_iterable([*text.encode(), 256] for _ in range(3) for text in TEXTS[4:]))
    cut = [tuple(row[start : start + WINDOW + 1]) for start in range(0, len(row) - WINDOW, WINDOW)]
    drawn_in_order = [tuple(window) for window in drawn.tolist()]
    assert drawn_in_order != cut[: len(drawn)]
    # After 120 draws, 127 windows have been cut: seven of them still wait.
    waiting = cut[: len(drawn) + 7]
    for window in drawn_in_order:
        waiting.remove(window)
    assert len(waiting) == 7


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_order_does_not_depend_on_workers(folder: Path, tmp_path: Path, num_workers: int) -> None:
    directory = stream(folder, tmp_path / "d")
    assert torch.equal(steps(batches(directory, num_workers), range(25)), steps(batches(directory), range(25)))
    assert workers_of() == []


def test_processes_share_out_one_stream(rows_in_json: Path, tmp_path: Path) -> None:
    directory = stream(rows_in_json, tmp_path / "d")
    whole = steps(batches(directory), range(10))
    for world_size in (2, 3):
        shares = [steps(batches(directory, rank=r, world_size=world_size), range(10)) for r in range(world_size)]
        assert torch.equal(torch.cat(shares, dim=1), whole)


def test_resuming_is_exact_at_every_step_and_on_any_number_of_processes(folder: Path, tmp_path: Path) -> None:
    directory = stream(folder, tmp_path / "d")
    whole = steps(batches(directory), range(25))
    stopped = [batches(directory, rank=rank, world_size=2) for rank in range(2)]
    for step in range(18):
        states = [source.state(step) for source in stopped]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        resumed = batches(directory, rank=2, world_size=3)
        resumed.load_state(step, states[0])
        assert torch.equal(steps(resumed, range(step, step + 5)), whole[step : step + 5, 4:])
        for source in stopped:
            source.batch(step)
    assert sum(tensor.nbytes for tensor in states[0].values()) < 4 * 7 * (WINDOW + 1) + 4 * 200 + 1000


def test_a_batch_can_be_drawn_again_and_saved_before_it_was_drawn(rows_in_json: Path, tmp_path: Path) -> None:
    directory = stream(rows_in_json, tmp_path / "d")
    source = batches(directory)
    before = source.state(0)
    batch = [source.batch(step) for step in range(3)][2]
    assert torch.equal(source.batch(2), batch)
    resumed = batches(directory)
    resumed.load_state(2, source.state(2))
    assert torch.equal(resumed.batch(2), batch)
    with pytest.raises(ValueError, match="is gone"):
        source.batch(0)
    resumed.load_state(0, before)
    assert torch.equal(steps(resumed, range(3))[2], batch)


def test_another_seed_is_another_order_of_the_same_windows(rows_in_json: Path, tmp_path: Path) -> None:
    data = TrainingData.open([str(stream(rows_in_json, tmp_path / "d"))])
    one, other = (steps(data.batches(WINDOW, 1, seed), range(30)) for seed in (5, 6))
    assert not torch.equal(one, other)


def test_a_state_of_other_settings_is_refused(rows_in_json: Path, tmp_path: Path) -> None:
    directory = stream(rows_in_json, tmp_path / "d")
    source = batches(directory)
    source.batch(0)
    state = source.state(1)
    data = TrainingData.open([str(directory)])
    for other in (data.batches(WINDOW + 1, BATCH, 5), data.batches(WINDOW, BATCH + 1, 5)):
        with pytest.raises(UserError, match="can only be resumed with the same settings"):
            other.load_state(1, state)
    with pytest.raises(UserError, match="has no position of the stream"):
        source.load_state(1, {})


def test_streams_mix_with_folders_by_weight_and_resume(rows_in_json: Path, tmp_path: Path) -> None:
    streamed = stream(rows_in_json, tmp_path / "d")
    with write_dataset(tmp_path / "s", ByteTokenizer()) as writers:
        writers["train"].append([0] * 100, 100)
        writers["validation"].append([7], 1)
    sources = [f"{tmp_path / 's'}=1", f"{streamed}=2"]
    data = TrainingData.open(sources)
    assert list(data.validation) == ["s", "d"]
    whole = data.batches(WINDOW, BATCH, seed=5)
    assert whole.num_windows is None
    drawn = [whole.batch(step) for step in range(8)]
    assert all((batch[:, 0] == 0).sum() == 2 for batch in drawn)
    resumed = TrainingData.open(sources).batches(WINDOW, BATCH, seed=5)
    resumed.load_state(7, whole.state(7))
    assert torch.equal(resumed.batch(7), drawn[7])
    with pytest.raises(UserError, match=r"the stream .*/d has no known length: give each source a weight"):
        TrainingData.open([str(streamed), str(tmp_path / "s")]).batches(WINDOW, BATCH, seed=5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--text-field", "body"], r"has no column 'body' but text; give --text-field"),
        (["--split", "nope"], "cannot be read: Bad split: nope"),
        (["--config", "nope"], "cannot be read: BuilderConfig 'nope' not found"),
        (["--validation-documents", 60], "only 60 documents or fewer, all for validation"),
        (["--validation-documents", 0], "must be at least 1"),
        (["--shuffle-windows", 0], "shuffle_windows must be above 0"),
    ],
)
def test_what_cannot_be_streamed_is_one_line_and_leaves_nothing(
    rows_in_json: Path, tmp_path: Path, args: list[object], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        stream(rows_in_json, tmp_path / "d", *args)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_a_missing_path_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for name in (tmp_path / "missing", "./missing", "far/too/deep"):
        with pytest.raises(UserError, match="does not exist"):
            stream(name, tmp_path / "d")


def test_formats_that_run_code_or_hold_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"is of the format imagefolder; parquet, json, .* can be streamed"):
        stream(tmp_path / "images", tmp_path / "d")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_that_breaks_off_is_named_and_nothing_hangs(tmp_path: Path, num_workers: int) -> None:
    path = tmp_path / "rows"
    path.mkdir()
    for i in range(3):
        (path / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[20 * i :][:20]))
    source = batches(stream(path, tmp_path / "d"), num_workers)
    (path / "2.jsonl").write_text("{broken")
    with pytest.raises(UserError, match=r"the dataset .*rows cannot be read: "):
        steps(source, range(100))
    assert workers_of() == []


def test_a_dead_worker_is_reported(rows_in_json: Path, tmp_path: Path) -> None:
    source = batches(stream(rows_in_json, tmp_path / "d"), num_workers=1)
    source.batch(0)
    (child,) = workers_of()
    child.kill()
    with pytest.raises(UserError, match=r"tokenizer process has died \(exit code -9\); continue with --resume"):
        steps(source, range(1, 1000))


PROGRAM = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from goldfinch.data import tokenizing
from goldfinch.data.training_data import TrainingData
tokenizing.CHUNK_CHARACTERS = 40
batches = TrainingData.open([sys.argv[1]]).batches(16, 6, 5, num_workers=2)
batches.batch(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def training(rows_in_json: Path, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A program without an `if __name__ == "__main__"` that has read a batch with two num_workers, and waits."""
    directory = stream(rows_in_json, tmp_path / "d")
    command = [sys.executable, "-c", PROGRAM, str(directory)]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as program:
        assert program.stdout.readline() == b"ready\n"
        yield program


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_workers_end_with_the_program_however_it_ends(training: subprocess.Popen, end: signal.Signals | None) -> None:
    children = workers_of(psutil.Process(training.pid))
    assert len(children) == 2
    if end:
        training.send_signal(end)
    else:
        training.stdin.close()
    assert training.wait(timeout=60) == (-end if end else 0)  # not the -6 of an abort
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_stored_training_tokens_are_not_looked_for_in_a_stream(rows_in_json: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="streams its training text"):
        TokenDataset.open(stream(rows_in_json, tmp_path / "d"), "train")
    with pytest.raises(UserError, match="streams its training text"):
        goldfinch_data("export", tmp_path / "d", "-o", tmp_path / "e")
    content = json.loads((tmp_path / "d" / "index.json").read_text())
    (tmp_path / "d" / "index.json").write_text(json.dumps(content | {"stream": {"datasets": "x"}}))
    with pytest.raises(UserError, match=r"unknown field stream\.datasets"):
        Index.load(tmp_path / "d")
