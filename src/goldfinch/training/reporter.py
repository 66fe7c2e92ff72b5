"""Who is told what happens in a run."""

from typing import Any, Protocol

from goldfinch.training.config import TrainConfig
from goldfinch.training.loss import Validation


class Reporter(Protocol):
    """Told what happens while a model trains, in the main process; the command line shows it."""

    def start(self, config: TrainConfig, step: int, steps: int) -> None:
        """The run starts, or resumes after `step` of `steps`."""

    def notice(self, text: str) -> None:
        """Something that the user should know, in a line."""

    def compiled(self, seconds: float) -> None:
        """Blocks are compiled (`TrainConfig.compile`): the first step took this much longer than the second."""

    def step(self, record: dict[str, Any], done: float) -> None:
        """One optimizer step is done; `record` is its line of metrics.jsonl, `done` the part of the run, up to 1.

        The record of a step that was skipped, as it gave no finite loss and gradient, has neither.
        """

    def validation(self, step: int, result: Validation) -> None:
        """A validation is done."""

    def sample(self, step: int, text: str) -> None:
        """The model has written a sample, its prompt included."""
