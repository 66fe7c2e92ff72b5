"""What a run measures: `metrics.jsonl`, one JSON object a line, and `loss.png`."""

import json
from pathlib import Path
from typing import Any

from goldfinch.errors import UserError
from goldfinch.files import atomic_file, write_text

FILE, PLOT = "metrics.jsonl", "loss.png"


class Metrics:
    """Appends records to a run's `metrics.jsonl`, each with its step.

    Args:
        folder: of the run.
        step: where the run starts or resumes; records of later steps, written before an interruption but after the
            last checkpoint, are dropped so that each step stands there once.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / FILE
        self.records = [record for record in read_metrics(folder) if record["step"] <= step]
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, **record: Any) -> None:
        """Append one record; it is in the file when the call returns."""
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def plot(self) -> Path:
        """Draw the training and validation loss over tokens into `loss.png`."""
        # The object interface, not pyplot: no global state, and no display is looked for.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        steps = [record for record in self.records if "loss" in record]
        axes.plot(*_series(steps, "loss"), color="0.75", linewidth=0.8, label="training, each step")
        axes.plot(*_series(_smoothed(steps), "loss"), color="tab:orange", label="training, running mean")
        validations = [record for record in self.records if "validation_loss" in record]
        axes.plot(*_series(validations, "validation_loss"), "o-", color="tab:blue", label="validation")
        axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=self._path.parent.name)
        axes.grid(alpha=0.3)
        axes.legend()
        path = self._path.parent / PLOT
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path


def _series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [record["tokens"] for record in records], [record[name] for record in records]


def _smoothed(records: list[dict[str, Any]], weight: float = 0.95) -> list[dict[str, Any]]:
    """Exponential running mean of the loss, without the pull towards zero at the start."""
    smoothed, total, norm = [], 0.0, 0.0
    for record in records:
        total = weight * total + (1 - weight) * record["loss"]
        norm = weight * norm + (1 - weight)
        smoothed.append(record | {"loss": total / norm})
    return smoothed


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole records of a run; a last line that an interruption cut short is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}:{number} is not JSON; mend or remove the line") from None
    return records
