"""Can a model recall what it has read? Two-layer models of every kind on MQAR, best over learning rates."""

import dataclasses
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.experiments.mqar.task import MqarBatch, MqarTask
from goldfinch.files import write_text
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import KINDS
from goldfinch.settings import from_plain
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate
from goldfinch.training.optimizer.schedule import learning_rate

LAYERS = 2
HEAD_SIZE = 64
CELLS = "cells.jsonl"
TRAINING, TEST = 0, 1  # streams of sequences
TEST_BATCHES = 8
CHECK_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarCell:
    """One training: all that its result depends on."""

    kind: str
    """Of the models in `goldfinch info`; two layers, one of them GOLD in a GoldFinch."""
    width: int
    """D."""
    task: MqarTask
    """Vocabulary, length and pairs."""
    learning_rate: float
    """After the warm-up of a twentieth of the steps; a quarter cosine leads to a tenth of it."""
    steps: int
    """At most."""
    batch_size: int
    """Sequences in a step."""
    solved: float
    """Test accuracy at which training ends early."""
    seed: int
    """Of weights and sequences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarResult:
    """What became of a cell."""

    cell: MqarCell
    accuracy: float
    """Part of the queries of the test that the model answers with the right value."""
    trained: int
    """Optimizer steps that were made."""
    seconds: float
    """That it took."""


def mqar_model(kind: str, width: int, vocab_size: int) -> ModelConfig:
    """A two-layer model with heads of 64, or one of its width below that."""
    config = KINDS[kind](LAYERS, HEAD_SIZE, vocab_size)
    return dataclasses.replace(config, width=width, head_size=min(HEAD_SIZE, width))


def train_cell(cell: MqarCell) -> MqarResult:
    """Train and test one model, on one thread, so that its result depends on nothing but the cell."""
    torch.set_num_threads(1)
    started = time.monotonic()
    model = Decoder(mqar_model(cell.kind, cell.width, cell.task.vocab_size))
    initialize(model, cell.seed)
    rates = OptimizerConfig(
        learning_rate=cell.learning_rate,
        final_learning_rate=cell.learning_rate / 10,
        warmup_steps=cell.steps // 20,
    )
    optimizer = build_optimizer(model, rates)
    accuracy, step = 0.0, 0
    while step < cell.steps and accuracy < cell.solved:
        batch = cell.task.batch(cell.batch_size, cell.seed, TRAINING, step)
        set_learning_rate(optimizer, learning_rate(step, step / cell.steps, rates))
        loss = F.cross_entropy(query_logits(model, batch), batch.values.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rates.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % CHECK_EVERY == 0 or step == cell.steps:
            accuracy = test_accuracy(model, cell)
    return MqarResult(cell=cell, accuracy=accuracy, trained=step, seconds=round(time.monotonic() - started, 1))


def query_logits(model: Decoder, batch: MqarBatch) -> Tensor:
    """(B P, V): what the model predicts at the queries."""
    hidden, _ = model.hidden(batch.ids)
    rows = torch.arange(len(batch.ids))[:, None]
    return model.head(hidden[rows, batch.positions].flatten(0, 1))


@torch.no_grad()
def test_accuracy(model: Decoder, cell: MqarCell) -> float:
    """Part of the queries whose value is the likeliest prediction, on sequences that are not trained on."""
    right = []
    for number in range(TEST_BATCHES):
        batch = cell.task.batch(cell.batch_size, cell.seed, TEST, number)
        right.append(query_logits(model, batch).argmax(-1) == batch.values.flatten())
    return float(torch.cat(right).float().mean())


def sweep(
    groups: Sequence[Sequence[MqarCell]], output: Path, jobs: int, told: Callable[[MqarResult], None]
) -> list[MqarResult]:
    """Train cells, each result kept in `output`/cells.jsonl as soon as it is there; those in it are not trained again.

    Args:
        groups: cells that differ in the learning rate alone; when one is solved, those after it are left out.
        output: folder of that file.
        jobs: processes at once, each with one thread.
        told: of each new result.

    Returns:
        All results of these groups, in their order.

    Raises:
        UserError: the file is broken.
    """
    path = output / CELLS
    results = read_results(path)
    write_text(path, "".join(map(_line, results)))  # without a last line that was cut short
    known = {result.cell: result for result in results}

    def following(group: Sequence[MqarCell]) -> MqarCell | None:
        """The cell to train next; None where the group is done."""
        for cell in group:
            if cell not in known:
                return cell
            if known[cell].accuracy >= cell.solved:
                break
        return None

    def add(result: MqarResult) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(result))
        known[result.cell] = result
        told(result)

    waiting = [group for group in groups if following(group)]
    running: list[tuple[Sequence[MqarCell], AsyncResult[MqarResult]]] = []
    if waiting:
        # Spawned: a fork of a process with threads may hang. Leaving the block ends the workers, also after Ctrl-C.
        with multiprocessing.get_context("spawn").Pool(min(jobs, len(waiting)), _ignore_ctrl_c) as pool:
            while waiting or running:
                while waiting and len(running) < jobs:
                    group = waiting.pop(0)
                    cell = following(group)
                    if cell is not None:
                        running.append((group, pool.apply_async(train_cell, (cell,))))
                for group, future in [pair for pair in running if pair[1].ready()]:
                    running = [pair for pair in running if pair[1] is not future]
                    add(future.get())
                    waiting.insert(0, group)
                time.sleep(0.05)
    return [known[cell] for group in groups for cell in group if cell in known]


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(result: MqarResult) -> str:
    return json.dumps(dataclasses.asdict(result)) + "\n"


def read_results(path: Path) -> list[MqarResult]:
    """The results in a file; a last line that was cut short is left out.

    Raises:
        UserError: another line is broken.
    """
    if not path.exists():
        return []
    results = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            content: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not JSON ({error}); mend or remove the line") from error
        results.append(from_plain(MqarResult, content, f"{path}:{number} "))
    return results


def best(results: Sequence[MqarResult]) -> dict[tuple[str, int], dict[MqarTask, float]]:
    """(kind, width) -> task -> accuracy: the best learning rate of each seed, mean over seeds."""
    by_seed: dict[tuple[str, int, MqarTask], dict[int, float]] = {}
    for result in results:
        cell = result.cell
        seeds = by_seed.setdefault((cell.kind, cell.width, cell.task), {})
        seeds[cell.seed] = max(seeds.get(cell.seed, 0.0), result.accuracy)
    table: dict[tuple[str, int], dict[MqarTask, float]] = {}
    for (kind, width, task), accuracies in by_seed.items():
        table.setdefault((kind, width), {})[task] = sum(accuracies.values()) / len(accuracies)
    return table
