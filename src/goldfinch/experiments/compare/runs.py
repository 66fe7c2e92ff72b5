"""What is in the folder of a training run: read from `training.json`, `config.json` and `metrics.jsonl` alone."""

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from goldfinch.checkpoint.model_folder import WEIGHTS, read_config
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.run.folder import SETTINGS
from goldfinch.training.run.metrics import FILE as METRICS
from goldfinch.training.run.metrics import read_metrics

TAIL_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, by the end of its metrics."""

    step: int = 0
    """Of the last optimizer step."""
    loss: float | None = None
    """At that step; None where it was skipped."""
    tokens_per_second: float | None = None
    """At that step."""
    validated: int | None = None
    """Step of the last validation."""
    validation_loss: float | None = None
    """At that validation."""


def read_progress(folder: Path) -> Progress:
    """The end of a run's metrics; step 0 where there are none."""
    progress = Progress()
    for record in _last_records(folder / METRICS):
        if "validation_loss" in record:
            changed = {"validated": record["step"], "validation_loss": record["validation_loss"]}
        else:  # a step, without a loss where it was skipped
            changed = {name: record.get(name) for name in ("step", "loss", "tokens_per_second")}
        progress = dataclasses.replace(progress, **changed)
    return progress


def _last_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines in the last bytes of a file that is being written to."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    # The first line may be cut, what follows the last newline may be half written.
    return [json.loads(line) for line in lines[size > TAIL_BYTES : -1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the arena, finished or not."""

    name: str
    """Of the model: the name of the folder that its seeds are in."""
    seed: int
    """Of weights and data order."""
    folder: Path
    """With the weights."""
    model: ModelConfig
    """What was trained."""
    settings: dict[str, Any]
    """Its training.json; runs of other versions may have more fields, or fewer."""
    records: list[dict[str, Any]]
    """Its metrics, in order."""

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The records of optimizer steps; those that were skipped have no loss."""
        return [record for record in self.records if "validation_loss" not in record]

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """The records of validations."""
        return [record for record in self.records if "validation_loss" in record]

    @property
    def final(self) -> dict[str, Any] | None:
        """The validation of the final weights; None while the run is not finished."""
        if not self.steps or not self.validations or not (self.folder / WEIGHTS).exists():
            return None
        last, step = self.validations[-1], self.steps[-1]["step"]
        whole = step >= self.settings.get("steps", 0)
        return last if whole and last["step"] == step else None


def find_runs(arena: Path) -> list[Run]:
    """All runs ARENA/NAME/seed-N, ordered by name and seed.

    Raises:
        UserError: there are none, one is broken, or the seeds of one name are of different models.
    """
    runs: list[Run] = []
    for folder in sorted(arena.glob("*/seed-*")):
        seed = folder.name.removeprefix("seed-")
        if not seed.isdecimal() or not (folder / SETTINGS).exists():
            continue
        run = Run(
            name=folder.parent.name,
            seed=int(seed),
            folder=folder,
            model=read_config(folder),
            settings=read_training(folder),
            records=read_metrics(folder),
        )
        if runs and runs[-1].name == run.name and runs[-1].model != run.model:
            raise UserError(f"{runs[-1].folder} and {folder} are different models: give one of them another name")
        runs.append(run)
    if not runs:
        raise UserError(f"{arena} holds no runs NAME/seed-N; `goldfinch compare RECIPE... --data DIR -o {arena}`")
    return sorted(runs, key=lambda run: (run.name, run.seed))


def read_training(folder: Path) -> dict[str, Any]:
    """The settings that a run was started with, as they are stored; where an older version stored less, as it meant.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings")
    if isinstance(content.get("data"), str):  # a run of before there were several sources
        content["data"] = [content["data"]]
    if isinstance(content.get("optimizer"), dict):  # what is newer than the run, it had by default
        content["optimizer"] = OptimizerConfig().to_dict() | content["optimizer"]
    return content
