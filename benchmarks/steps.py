"""A training step to be measured: everything that the trainer does, except loading data."""

from collections.abc import Callable

import torch
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.gradient import accumulate, clip_gradient
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.parallel.processes import SINGLE_PROCESS


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
