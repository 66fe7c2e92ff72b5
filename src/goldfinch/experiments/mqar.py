"""Can a model recall what it has read? Two-layer models of every kind on MQAR, best over learning rates."""

import dataclasses
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.config import ModelConfig
from goldfinch.experiments.mqar_task import MqarBatch, MqarTask
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import KINDS
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer import build_optimizer, set_learning_rate
from goldfinch.training.schedule import learning_rate

LAYERS = 2
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
    """Length, pairs and vocabulary."""
    learning_rate: float
    """After the warm-up; it falls to a tenth."""
    steps: int
    """At most."""
    batch_size: int
    """Sequences in a step."""
    solved: float
    """Test accuracy at which training ends early."""
    seed: int
    """Of weights and sequences."""


def mqar_model(kind: str, width: int, vocab_size: int) -> ModelConfig:
    """A two-layer model; one head where the width is below 64."""
    config = KINDS[kind](LAYERS, 64, vocab_size)
    return dataclasses.replace(config, width=width, head_size=min(64, width))


def train_cell(cell: MqarCell) -> dict[str, float]:
    """Train and test one model.

    Returns:
        accuracy (part of the test's queries answered right), steps, seconds.
    """
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % CHECK_EVERY == 0 or step == cell.steps:
            accuracy = test_accuracy(model, cell)
    return {"accuracy": accuracy, "steps": step, "seconds": round(time.monotonic() - started, 1)}


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
