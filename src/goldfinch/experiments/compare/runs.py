"""What is in the folder of a training run, finished or not."""

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from goldfinch.checkpoint.model_folder import WEIGHTS, read_config
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.folder import SETTINGS, read_settings
from goldfinch.training.run.metrics import FILE as METRICS
from goldfinch.training.run.metrics import read_metrics

TAIL_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, from the end of its metrics."""

    step: int = 0
    """The last optimizer step."""
    loss: float | None = None
    """Training loss at that step; None if the step was skipped."""
    tokens_per_second: float | None = None
    """Speed at that step."""
    validated: int | None = None
    """The step of the last validation."""
    validation_loss: float | None = None
    """Loss of that validation."""


def read_progress(folder: Path) -> Progress:
    """Read the end of a run's metrics; step 0 if there are none."""
    progress = Progress()
    for record in _last_records(folder / METRICS):
        if "validation_loss" in record:
            changed = {"validated": record["step"], "validation_loss": record["validation_loss"]}
        else:  # a step, without a loss where it was skipped
            changed = {name: record.get(name) for name in ("step", "loss", "tokens_per_second")}
        progress = dataclasses.replace(progress, **changed)
    return progress


def _last_records(path: Path) -> list[dict[str, Any]]:
    """Complete lines at the end of a file that is being written to."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    # The first line may be cut off, and the last one half written.
    return [json.loads(line) for line in lines[size > TAIL_BYTES : -1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a comparison, finished or not."""

    name: str
    """The model's name: that of the folder with its seeds."""
    seed: int
    """Random seed of weights and data order."""
    folder: Path
    """The run's folder."""
    model: ModelConfig
    """The model that was trained."""
    settings: TrainConfig
    """What it was trained with."""
    records: list[dict[str, Any]]
    """Its metrics, in order."""

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Records of optimizer steps; skipped steps have no loss."""
        return [record for record in self.records if "validation_loss" not in record]

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """Records of validations."""
        return [record for record in self.records if "validation_loss" in record]

    @property
    def final(self) -> dict[str, Any] | None:
        """The validation of the final weights; None until the run is finished."""
        if not self.steps or not self.validations or not (self.folder / WEIGHTS).exists():
            return None
        last, step = self.validations[-1], self.steps[-1]["step"]
        whole = step >= self.settings.steps
        return last if whole and last["step"] == step else None


def find_runs(folder: Path) -> list[Run]:
    """Find all runs FOLDER/NAME/seed-N, ordered by name and seed.

    Raises:
        UserError: there are none, one is corrupt, or the seeds of one name are different models.
    """
    runs: list[Run] = []
    for path in sorted(folder.glob("*/seed-*")):
        seed = path.name.removeprefix("seed-")
        if not seed.isdecimal() or not (path / SETTINGS).exists():
            continue
        run = Run(
            name=path.parent.name,
            seed=int(seed),
            folder=path,
            model=read_config(path),
            settings=read_settings(path),
            records=read_metrics(path),
        )
        if runs and runs[-1].name == run.name and runs[-1].model != run.model:
            raise UserError(f"{runs[-1].folder} and {path} are different models: rename one of them")
        runs.append(run)
    if not runs:
        raise UserError(f"{folder} holds no runs NAME/seed-N; `goldfinch compare RECIPE... --data DIR -o {folder}`")
    return sorted(runs, key=lambda run: (run.name, run.seed))
