"""The metrics of a run: `metrics.jsonl`, one JSON object per line, and `loss.png`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goldfinch.errors import UserError
from goldfinch.files import atomic_file
from goldfinch.plots import draw
from goldfinch.training.run.trackers import Tracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE, PLOT = "metrics.jsonl", "loss.png"


class Metrics:
    """Appends records to a run's `metrics.jsonl`, each with its step.

    Args:
        folder: of the run.
        step: where the run starts or resumes. Records of later steps, written after the last checkpoint and before an
            interruption, are dropped, so that each step appears once. A last validation that is there stays, and is
            not written again.
        trackers: also get every record, starting with those from before a resume.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = folder / FILE
        self._trackers = trackers
        self._curve = LossCurve()
        self._validated: set[tuple[int, bool] | None] = set()
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for record in _records(self._path):
                if record["step"] <= step:
                    self._validated.add(_validation(record))
                    file.write(json.dumps(record) + "\n")
                    self._pass_on(record)

    def add(self, **record: Any) -> None:
        """Append one record to the file, except a validation that a resumed run repeats."""
        if (validation := _validation(record)) and validation in self._validated:
            return
        self._validated.add(validation)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._pass_on(record)

    def _pass_on(self, record: dict[str, Any]) -> None:
        self._curve.add(record)
        for tracker in self._trackers:
            tracker.add(record)

    def plot(self) -> Path:
        """Plot the training and validation loss over tokens in `loss.png`."""
        path = self._path.parent / PLOT
        draw(path, self._draw)
        return path

    def _draw(self, axes: "Axes") -> None:
        axes.set_prop_cycle(color=["tab:blue", "tab:green", "tab:red"])
        tokens, losses, means = self._curve.training()
        axes.plot(tokens, losses, color="0.75", linewidth=0.8, label=self._curve.label)
        axes.plot(tokens, means, color="tab:orange", label="training, running mean")
        for num_tokens, (tokens, losses) in self._curve.validation().items():
            axes.plot(tokens, losses, "o-", label=f"validation, {num_tokens:,} tokens")
        axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=self._path.parent.name)
        axes.grid(alpha=0.3)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


class LossCurve:
    """The losses of a run of any length as at most a few thousand points: where there are more, pairs are averaged."""

    MAX_POINTS = 4096

    def __init__(self) -> None:
        self._steps_per_point = 1
        self._points: list[tuple[int, float, float]] = []
        """(tokens, mean loss, running mean) of `_steps_per_point` steps each."""
        self._part: list[float] = []
        self._mean = RunningMean()
        self._validations: dict[int, list[tuple[int, float]]] = {}
        """(tokens, loss) by the number of validation tokens."""

    @property
    def label(self) -> str:
        """The legend entry of the training loss."""
        count = self._steps_per_point
        return "training, each step" if count == 1 else f"training, mean of {count} steps"

    def add(self, record: dict[str, Any]) -> None:
        """Add the losses of a record of `metrics.jsonl`."""
        if "validation_loss" in record:
            self._validations.setdefault(num_validation_tokens(record), []).append(
                (record["tokens"], record["validation_loss"])
            )
        if "loss" not in record:
            return
        mean = self._mean.add(record["loss"])
        self._part.append(record["loss"])
        if len(self._part) < self._steps_per_point:
            return
        self._points.append((record["tokens"], sum(self._part) / len(self._part), mean))
        self._part = []
        if len(self._points) == self.MAX_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(tokens, (a + b) / 2, mean) for (_, a, _), (tokens, b, mean) in pairs]
            self._steps_per_point *= 2

    def training(self) -> tuple[Sequence[int], Sequence[float], Sequence[float]]:
        """Tokens, losses, and their running mean."""
        tokens, losses, means = zip(*self._points, strict=True) if self._points else ((), (), ())
        return tokens, losses, means

    def validation(self) -> dict[int, tuple[Sequence[int], Sequence[float]]]:
        """Tokens and losses of each curve, by `num_validation_tokens`."""
        return {
            text: ([tokens for tokens, _ in points], [loss for _, loss in points])
            for text, points in self._validations.items()
        }


class RunningMean:
    """Exponential running mean without the pull towards zero at the start."""

    def __init__(self, decay: float = 0.95) -> None:
        self._decay = decay
        self._total, self._norm = 0.0, 0.0

    def add(self, value: float) -> float:
        """Add a value; returns the mean."""
        self._total = self._decay * self._total + (1 - self._decay) * value
        self._norm = self._decay * self._norm + 1 - self._decay
        return self._total / self._norm


def running_mean(values: Iterable[float]) -> list[float]:
    """The `RunningMean` after each value."""
    mean = RunningMean()
    return [mean.add(value) for value in values]


def num_validation_tokens(record: dict[str, Any]) -> int:
    """Number of tokens that a validation was measured on.

    The last validation of a run uses the whole split, those before often only its start: losses on different texts do
    not form one curve.
    """
    return sum(part["tokens"] for part in record["loss_by_position"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All complete records of a run; a last line that an interruption cut short is left out."""
    return list(_records(folder / FILE))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if bad:
                raise UserError(f"{path}:{bad} is not JSON; fix or remove the line")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                bad = number
                continue
            if not _is_record(record):
                raise UserError(f"{path}:{number} is not a record of a run; fix or remove the line")
            yield record


def _validation(record: dict[str, Any]) -> tuple[int, bool] | None:
    """Which validation a record is; None if it is a step."""
    return (record["step"], record["whole_validation_set"]) if "validation_loss" in record else None


def _is_record(record: object) -> bool:
    """Whether a line has what is read of it, in the right types."""
    if not isinstance(record, dict):
        return False
    numbers = [record.get(name, 0) for name in ("loss", "validation_loss", "bits_per_byte")]
    counts = [record.get("step"), record.get("tokens")]
    if "validation_loss" in record:
        parts = record.get("loss_by_position")
        if not isinstance(parts, list) or not isinstance(record.get("whole_validation_set"), bool):
            return False
        counts += [part.get("tokens") if isinstance(part, dict) else None for part in parts]
    return all(type(count) is int for count in counts) and all(type(number) in (int, float) for number in numbers)
