"""Training two-layer models of every kind on MQAR (multi-query associative recall), best over learning rates."""

import dataclasses
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import AsyncResult
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.experiments.mqar.task import MqarBatch, MqarTask
from goldfinch.files import write_text
from goldfinch.json_yaml import parse_json
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import KINDS
from goldfinch.settings import from_plain
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate
from goldfinch.training.optimizer.schedule import learning_rate

LAYERS = 2
HEAD_SIZE = 64
RESULTS_FILE = "results.jsonl"
TRAINING, TEST = 0, 1  # streams of sequences
TEST_BATCHES = 8
CHECK_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarRun:
    """One training run: all that its result depends on."""

    kind: str
    """Kind of model, as in presets; two layers, one of them GOLD in a GoldFinch."""
    width: int
    """D."""
    task: MqarTask
    """Vocabulary, length and pairs."""
    learning_rate: float
    """Peak, after warm-up over a twentieth of the steps; decays to a tenth of it by a quarter cosine."""
    steps: int
    """Maximum number of optimizer steps."""
    batch_size: int
    """Sequences per step."""
    target_accuracy: float
    """Test accuracy at which training ends early."""
    seed: int
    """Random seed of weights and sequences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarResult:
    """The result of a run."""

    run: MqarRun
    accuracy: float
    """Fraction of test queries that the model answers with the right value."""
    num_steps: int
    """Number of optimizer steps."""
    seconds: float
    """Duration."""


def mqar_model(kind: str, width: int, vocab_size: int) -> ModelConfig:
    """A two-layer model with heads of 64, or one of its width below that."""
    config = KINDS[kind](LAYERS, HEAD_SIZE, vocab_size)
    return dataclasses.replace(config, width=width, head_size=min(HEAD_SIZE, width))


def train_run(run: MqarRun) -> MqarResult:
    """Train and test one model on one thread, so that the result depends on nothing but `run`."""
    torch.set_num_threads(1)
    started = time.monotonic()
    model = Decoder(mqar_model(run.kind, run.width, run.task.vocab_size))
    initialize(model, run.seed)
    config = OptimizerConfig(
        learning_rate=run.learning_rate,
        final_learning_rate=run.learning_rate / 10,
        warmup_steps=run.steps // 20,
    )
    optimizer = build_optimizer(model, config)
    accuracy, step = 0.0, 0
    while step < run.steps and accuracy < run.target_accuracy:
        batch = run.task.batch(run.batch_size, run.seed, TRAINING, step)
        set_learning_rate(optimizer, learning_rate(step, step / run.steps, config))
        loss = F.cross_entropy(query_logits(model, batch), batch.values.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % CHECK_EVERY == 0 or step == run.steps:
            accuracy = test_accuracy(model, run)
    return MqarResult(run=run, accuracy=accuracy, num_steps=step, seconds=round(time.monotonic() - started, 1))


def query_logits(model: Decoder, batch: MqarBatch) -> Tensor:
    """(B P, V): what the model predicts at the queries."""
    hidden, _ = model.hidden(batch.ids)
    rows = torch.arange(len(batch.ids))[:, None]
    return model.head(hidden[rows, batch.positions].flatten(0, 1))


@torch.no_grad()
def test_accuracy(model: Decoder, run: MqarRun) -> float:
    """Fraction of queries whose value is the most likely prediction, on test sequences."""
    correct = []
    for number in range(TEST_BATCHES):
        batch = run.task.batch(run.batch_size, run.seed, TEST, number)
        correct.append(query_logits(model, batch).argmax(-1) == batch.values.flatten())
    return float(torch.cat(correct).float().mean())


def sweep(
    groups: Sequence[Sequence[MqarRun]], output: Path, jobs: int, on_result: Callable[[MqarResult], None]
) -> list[MqarResult]:
    """Train runs; results are added to `output`/results.jsonl one by one, and runs that it has are not repeated.

    Args:
        groups: runs that differ only in the learning rate; once one reaches its target accuracy, the rest are skipped.
        output: folder of that file.
        jobs: number of processes, each with one thread.
        on_result: called with each new result.

    Returns:
        All results of these groups, in their order.

    Raises:
        UserError: the file is corrupt.
    """
    path = output / RESULTS_FILE
    results = read_results(path)
    write_text(path, "".join(map(_line, results)))  # without a last line that was cut short
    known = {result.run: result for result in results}

    def next_run(group: Sequence[MqarRun]) -> MqarRun | None:
        """The run to train next; None if the group is done."""
        for run in group:
            if run not in known:
                return run
            if known[run].accuracy >= run.target_accuracy:
                break
        return None

    def add(result: MqarResult) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(result))
        known[result.run] = result
        on_result(result)

    waiting = [group for group in groups if next_run(group)]
    running: list[tuple[Sequence[MqarRun], AsyncResult[MqarResult]]] = []
    if waiting:
        # Spawned: forking a process with threads may hang. Leaving the block ends the workers, also after Ctrl-C.
        with multiprocessing.get_context("spawn").Pool(min(jobs, len(waiting)), _ignore_ctrl_c) as pool:
            while waiting or running:
                while waiting and len(running) < jobs:
                    group = waiting.pop(0)
                    run = next_run(group)
                    if run is not None:
                        running.append((group, pool.apply_async(train_run, (run,))))
                for group, future in [pair for pair in running if pair[1].ready()]:
                    running = [pair for pair in running if pair[1] is not future]
                    add(future.get())
                    waiting.insert(0, group)
                time.sleep(0.05)
    return [known[run] for group in groups for run in group if run in known]


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(result: MqarResult) -> str:
    return json.dumps(dataclasses.asdict(result)) + "\n"


def read_results(path: Path) -> list[MqarResult]:
    """Read the results in a file; a last line that was cut short is left out.

    Raises:
        UserError: another line is corrupt.
    """
    if not path.exists():
        return []
    results = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            content = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON ({error}); fix or remove the line") from error
        results.append(from_plain(MqarResult, content, f"{path}:{number} "))
    return results


def best_accuracies(results: Sequence[MqarResult]) -> dict[tuple[str, int], dict[MqarTask, float]]:
    """(kind, width) -> task -> accuracy of the best learning rate of each seed, mean over seeds."""
    by_seed: dict[tuple[str, int, MqarTask], dict[int, float]] = {}
    for result in results:
        run = result.run
        seeds = by_seed.setdefault((run.kind, run.width, run.task), {})
        seeds[run.seed] = max(seeds.get(run.seed, 0.0), result.accuracy)
    table: dict[tuple[str, int], dict[MqarTask, float]] = {}
    for (kind, width, task), accuracies in by_seed.items():
        table.setdefault((kind, width), {})[task] = sum(accuracies.values()) / len(accuracies)
    return table
