"""How many steps fit into a time."""

import statistics
import time

import torch

from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import TrainConfig
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer import build_optimizer


def seconds_per_step(config: TrainConfig, steps: int = 3) -> float:
    """Median time of an optimizer step on this machine, on random tokens in fp32 on the CPU, after one to warm up."""
    model = Decoder(config.model)
    initialize(model, config.seed)
    optimizer = build_optimizer(model, config.optimizer)
    windows = torch.randint(config.model.vocab_size, (config.batch_size, config.context + 1))
    times = []
    for _ in range(steps + 1):
        started = time.monotonic()
        next_token_loss(model, windows).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])
