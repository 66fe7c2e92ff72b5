"""How a run reports its progress."""

import logging
from typing import Any, Protocol

from goldfinch.training.config import TrainConfig
from goldfinch.training.loss import Validation

_LOGGER = logging.getLogger("goldfinch")


class Reporter(Protocol):
    """Called in the main process while a model trains; the command line has one that draws a progress bar."""

    def start(self, config: TrainConfig, step: int, steps: int) -> None:
        """The run starts, or resumes after `step` of `steps`."""

    def notice(self, text: str) -> None:
        """One line that the user should see."""

    def compiled(self, seconds: float) -> None:
        """Blocks are compiled (`TrainConfig.compile`); the first step took this much longer than the second."""

    def step(self, record: dict[str, Any], done: float) -> None:
        """One optimizer step is done.

        Args:
            record: its line of metrics.jsonl. A step that was skipped, because its loss or gradient was not finite, has
                neither of them.
            done: fraction of the run, 0 to 1.
        """

    def validation(self, step: int, result: Validation) -> None:
        """A validation is done."""

    def sample(self, step: int, text: str) -> None:
        """The model generated a sample; `text` includes the prompt."""


class LogReporter:
    """Reports to the logger "goldfinch": progress at the level INFO, notices as warnings."""

    def start(self, config: TrainConfig, step: int, steps: int) -> None:
        """Log where the run starts."""
        _LOGGER.info("training %s, steps %d to %d", config.output, step, steps)

    def notice(self, text: str) -> None:
        """Log a warning."""
        _LOGGER.warning(text)

    def compiled(self, seconds: float) -> None:
        """Log how long compiling took."""
        _LOGGER.info("compiled in %.0f s", seconds)

    def step(self, record: dict[str, Any], done: float) -> None:
        """Log the loss."""
        _LOGGER.info("step %d (%.1f%%): loss %s", record["step"], 100 * done, record.get("loss", "not finite, skipped"))

    def validation(self, step: int, result: Validation) -> None:
        """Log the validation loss."""
        _LOGGER.info(
            "step %d: validation %.4f nats per token, %.4f bits per byte (%s)",
            step,
            result.loss,
            result.bits_per_byte,
            result.extent,
        )

    def sample(self, step: int, text: str) -> None:
        """Log the sample."""
        _LOGGER.info("step %d, sample: %s", step, text)
