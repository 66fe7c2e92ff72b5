"""What a run measures: `metrics.jsonl`, one JSON object a line, and `loss.png`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from goldfinch.errors import UserError
from goldfinch.files import atomic_file
from goldfinch.training.run.trackers import Tracker

FILE, PLOT = "metrics.jsonl", "loss.png"


class Metrics:
    """Appends records to a run's `metrics.jsonl`, each with its step.

    Args:
        folder: of the run.
        step: where the run starts or resumes; records of later steps, written before an interruption but after the
            last checkpoint, are dropped so that each step stands there once.
        trackers: get every record, too, those from before a resume first.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = folder / FILE
        self._trackers = trackers
        self._curve = LossCurve()
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for record in _records(self._path):
                if record["step"] <= step:
                    file.write(json.dumps(record) + "\n")
                    self._pass_on(record)

    def add(self, **record: Any) -> None:
        """Append one record; it is in the file when the call returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._pass_on(record)

    def _pass_on(self, record: dict[str, Any]) -> None:
        self._curve.add(record)
        for tracker in self._trackers:
            tracker.add(record)

    def plot(self) -> Path:
        """Draw the training and validation loss over tokens into `loss.png`."""
        # The object interface, not pyplot: no global state, and no display is looked for.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        axes.set_prop_cycle(color=["tab:blue", "tab:green", "tab:red"])
        tokens, losses, means = self._curve.training()
        axes.plot(tokens, losses, color="0.75", linewidth=0.8, label=self._curve.label)
        axes.plot(tokens, means, color="tab:orange", label="training, running mean")
        for text, (tokens, losses) in self._curve.validation().items():
            axes.plot(tokens, losses, "o-", label=f"validation, {text:,} tokens" if text else "validation")
        axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=self._path.parent.name)
        axes.grid(alpha=0.3)
        axes.legend()
        path = self._path.parent / PLOT
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers:
            tracker.close()


class LossCurve:
    """The losses of a run of any length as a few thousand points: where there are too many, two become their mean."""

    MOST_POINTS = 4096

    def __init__(self) -> None:
        self._steps_per_point = 1
        self._points: list[tuple[int, float, float]] = []
        """Last tokens, mean loss and last running mean of `_steps_per_point` steps each."""
        self._part: list[float] = []
        self._total, self._norm = 0.0, 0.0
        self._validations: dict[int, list[tuple[int, float]]] = {}
        """Tokens and losses, by the length of the text that they are of."""

    @property
    def label(self) -> str:
        """What a point of the training loss stands for."""
        count = self._steps_per_point
        return "training, each step" if count == 1 else f"training, mean of {count} steps"

    def add(self, record: dict[str, Any]) -> None:
        """Take the losses from a record of `metrics.jsonl`."""
        if "validation_loss" in record:
            self._validations.setdefault(measured_tokens(record), []).append(
                (record["tokens"], record["validation_loss"])
            )
        if "loss" not in record:
            return
        # Exponential running mean, without the pull towards zero at the start.
        self._total = 0.95 * self._total + 0.05 * record["loss"]
        self._norm = 0.95 * self._norm + 0.05
        self._part.append(record["loss"])
        if len(self._part) < self._steps_per_point:
            return
        self._points.append((record["tokens"], sum(self._part) / len(self._part), self._total / self._norm))
        self._part = []
        if len(self._points) == self.MOST_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(tokens, (a + b) / 2, mean) for (_, a, _), (tokens, b, mean) in pairs]
            self._steps_per_point *= 2

    def training(self) -> tuple[Sequence[int], Sequence[float], Sequence[float]]:
        """Tokens, losses, and their running mean."""
        tokens, losses, means = zip(*self._points, strict=True) if self._points else ((), (), ())
        return tokens, losses, means

    def validation(self) -> dict[int, tuple[Sequence[int], Sequence[float]]]:
        """Tokens and losses of each curve, by `measured_tokens`."""
        return {
            text: ([tokens for tokens, _ in points], [loss for _, loss in points])
            for text, points in self._validations.items()
        }


def measured_tokens(record: dict[str, Any]) -> int:
    """How many targets a validation was over; 0 where its record is too old to tell.

    The last one of a run reads all of the split, those before often only its beginning: losses over different texts
    are no curve.
    """
    return sum(part["tokens"] for part in record.get("loss_by_position", ()))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole records of a run; a last line that an interruption cut short is left out."""
    return list(_records(folder / FILE))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if bad:
                raise UserError(f"{path}:{bad} is not JSON; mend or remove the line")
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                bad = number
