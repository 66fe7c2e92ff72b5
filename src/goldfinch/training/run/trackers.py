"""Sending the records of `metrics.jsonl` to TensorBoard and Weights & Biases."""

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.training.config import TrainConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD, WANDB_ID = "tensorboard", "wandb-id"


class Tracker(Protocol):
    """Gets every record of a run in order; when a run is resumed, the earlier records come again."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record, which has its step."""

    def close(self) -> None:
        """Finish: no more records will come."""


def check_trackers(config: TrainConfig) -> None:
    """Raise a UserError if a tracker that the settings ask for is not installed."""
    if config.tensorboard:
        _summary_writer()
    if config.wandb:
        _wandb()


def open_trackers(config: TrainConfig) -> list[Tracker]:
    """Open the trackers that the settings ask for.

    Raises:
        UserError: one is not installed, or does not start.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(config.output / TENSORBOARD))
    if config.wandb:
        trackers.append(WeightsAndBiases(config))
    return trackers


class TensorBoard:
    """TensorBoard event files, rewritten at each start, so that no step is lost or duplicated, whatever stopped a run.

    Args:
        folder: for event files; older ones in it are removed.
    """

    def __init__(self, folder: Path) -> None:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = _summary_writer()(str(folder))

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one scalar per number."""
        for name, value in _numbers(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, or in a local folder where WANDB_MODE=offline asks for that.

    A resumed run continues there under the same id, and steps that are there are not sent again. Offline, where that is
    unknown, each start writes a folder with the whole run: `wandb sync` the newest.

    Args:
        config: names the project, the run's folder and its settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        wandb = _wandb()
        path = config.output / WANDB_ID
        if not path.exists():
            write_text(path, secrets.token_hex(8))
        try:
            self._run = wandb.init(
                project=config.wandb,
                name=config.output.resolve().name,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                reinit="create_new",  # several runs in one process are several runs
                dir=config.output,
                config=config.to_dict(),
                # The terminal shows our own progress.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}): log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._first_step = self._run.step

    def add(self, record: Mapping[str, Any]) -> None:
        """Log all numbers of one record."""
        if record["step"] >= self._first_step:
            self._run.log(dict(_numbers(record)), step=record["step"])

    def close(self) -> None:
        """Send what is pending."""
        self._run.finish()


def _summary_writer() -> type["SummaryWriter"]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"TensorBoard is not installed ({error}): pip install 'goldfinch[tensorboard]'") from error
    return SummaryWriter


def _wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"Weights & Biases is not installed ({error}): pip install 'goldfinch[wandb]'") from error
    return wandb


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number but the step, by name; numbers in a nested mapping are called `mapping/name`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and prefix + name != "step":
            yield prefix + name, value
