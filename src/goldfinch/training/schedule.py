"""The learning rate over a run."""

import math

from goldfinch.training.config import OptimizerConfig


def learning_rate(step: int, progress: float, config: OptimizerConfig) -> float:
    """Quarter cosine with a linear warm-up (SPEC 8): final + (initial - final) cos(pi/2 progress).

    Args:
        step: 0 for the first optimizer step; the warm-up counts in steps.
        progress: part of the run that is done, from 0 to 1.
        config: rates and warm-up.
    """
    initial, final = config.learning_rate, config.final_learning_rate
    rate = final + (initial - final) * math.cos(math.pi / 2 * progress)
    if step < config.warmup_steps:
        rate *= config.warmup_start + (1 - config.warmup_start) * step / config.warmup_steps
    return rate
