"""What must hold before the runs of a comparison are started."""

from pathlib import Path
from typing import Any

from goldfinch.errors import UserError
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.folder import SETTINGS, read_settings

# What decides which tokens a step sees.
_BATCHES = ("data", "sequence_length", "batch_size", "steps", "epochs", "max_minutes")


def check_same_batches(name: str, config: TrainConfig, first: TrainConfig) -> None:
    """Raise a UserError if the model called `name` would not be trained on the same batches as the first one."""
    for field in _BATCHES:
        ours, theirs = getattr(config, field), getattr(first, field)
        if ours != theirs:
            flag = field.replace("_", "-")
            raise UserError(f"{name} would train with {field} {ours}, the first model with {theirs}: give --{flag}")


def check_same_run(folder: Path, config: TrainConfig) -> None:
    """Raise a UserError if the folder holds a run that was started with other settings."""
    if not (folder / SETTINGS).exists():
        return
    stored, wanted = read_settings(folder).to_dict(), config.to_dict()
    for field in ("model", "optimizer", *_BATCHES):
        _check_same(folder, field, stored[field], wanted[field])


def _check_same(folder: Path, name: str, stored: Any, wanted: Any) -> None:
    """Compare one setting, field by field."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for field in wanted:
            _check_same(folder, f"{name}.{field}", stored.get(field), wanted[field])
    elif stored != wanted:
        raise UserError(
            f"{folder} was started with {name} {stored}, not {wanted}: choose another -o, or use the same settings"
        )
