"""The learning rate over a run."""

import math

from goldfinch.training.config import OptimizerConfig


def learning_rate(step: int, progress: float, config: OptimizerConfig) -> float:
    """The learning rate of a step: linear warm-up, then from `learning_rate` to `final_learning_rate` by the schedule.

    The paper's is the quarter cosine (SPEC 8): final + (initial - final) cos(pi/2 progress).

    Args:
        step: 0 for the first optimizer step; the warm-up counts in steps.
        progress: fraction of the run that is done, 0 to 1.
        config: learning rates, schedule and warm-up.
    """
    initial, final = config.learning_rate, config.final_learning_rate
    rate = final + (initial - final) * _height(progress, config)
    if step < config.warmup_steps:
        rate *= config.warmup_start + (1 - config.warmup_start) * step / config.warmup_steps
    return rate


def _height(progress: float, config: OptimizerConfig) -> float:
    """1 at the start of the run, 0 at its end."""
    match config.schedule:
        case "quarter_cosine":
            return math.cos(math.pi / 2 * progress)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            decayed = max(0.0, progress - (1 - config.decay_fraction)) / config.decay_fraction
            return 1 - (decayed if config.decay_shape == "linear" else math.sqrt(decayed))
