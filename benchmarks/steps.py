"""A training step to be measured, everything that the trainer does except loading data, and a check of its loss."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from goldfinch.benchmark.speed import fill_zero_weights
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.gradient import accumulate, clip_gradient
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.parallel.processes import SINGLE_PROCESS

TOLERANCE = 1e-5  # relative, of the loss in fp32


@torch.no_grad()
def check_loss(model: Decoder, windows: Tensor) -> None:
    """Check that the training loss of a model is the cross entropy of all its logits.

    Args:
        model: in fp32.
        windows: (B, T + 1) ids; few, since all logits are in memory at once.

    Raises:
        RuntimeError: it is not.
    """
    logits, _ = model(windows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
    difference = float((next_token_loss(model, windows) / expected - 1).abs())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the loss differs by {difference:.1e}; no speed is shown")


def check_same_loss(models: Mapping[str, Decoder], windows: Tensor, tolerance: float) -> None:
    """Check that models have the same loss when they have the same weights, which they are given here.

    Raises:
        RuntimeError: they do not.
    """
    (first, *others), losses = models, {}
    for name, model in models.items():
        initialize(model, 0)
        fill_zero_weights(model)
        losses[name] = float(next_token_loss(model, windows).detach())
    for name in others:
        difference = abs(losses[name] / losses[first] - 1)
        if not difference <= tolerance:
            raise RuntimeError(f"the losses of {first} and {name} differ by {difference:.1e}; no speed is shown")


def random_windows(batch_size: int, sequence_length: int, vocab_size: int) -> Tensor:
    """(B, T + 1) ids, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (batch_size, sequence_length + 1), generator=generator)


def make_step(
    model: Decoder, windows: Tensor, optimizer: OptimizerConfig, *, micro_batch_size: int = 0, bf16: bool = False
) -> Callable[[], None]:
    """A training step of `model`, which is initialised here, on one batch.

    Args:
        model: with its plan, if any.
        windows: (B, T + 1) ids.
        optimizer: its settings.
        micro_batch_size: windows per forward pass; 0 for all.
        bf16: under autocast.
    """
    initialize(model, 0)
    stepper = build_optimizer(model, optimizer)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def step() -> None:
        accumulate(model, windows, micro_batch_size, SINGLE_PROCESS, autocast)
        clip_gradient(model.parameters(), optimizer.max_gradient_norm)
        stepper.step()
        stepper.zero_grad()

    return step
