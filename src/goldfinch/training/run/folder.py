"""The folder of a run: whether a run can start or resume in it, its settings, its samples."""

import json
from pathlib import Path

from goldfinch.checkpoint.model_folder import CONFIG, TOKENIZER, WEIGHTS, read_config, save_description
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import read_json, write_text
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.checkpoint import FOLDER
from goldfinch.training.run.metrics import FILE as METRICS

SETTINGS, SAMPLES = "training.json", "samples.txt"


def read_settings(run: Path) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        UserError: the folder holds no run, or its settings are corrupt.
    """
    path = run / SETTINGS
    if not path.exists():
        raise UserError(f"{run} holds no training run: {SETTINGS} is missing")
    try:
        return TrainConfig.from_dict(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_new(run: Path) -> None:
    """Raise a UserError if the folder holds a run already, or other files that a run would overwrite."""
    if (run / SETTINGS).exists():
        raise UserError(
            f"{run} already holds a run: resume it with `goldfinch train --resume {run}`, "
            "replace it with --overwrite, or choose another folder"
        )
    taken = [name for name in (CONFIG, WEIGHTS, TOKENIZER, FOLDER, METRICS) if (run / name).exists()]
    if taken or run.is_file():
        raise UserError(f"{run / ''.join(taken[:1])} exists: choose another output folder")


def check_resumable(config: TrainConfig) -> None:
    """Raise a UserError if the folder holds another model than the settings describe."""
    if read_config(config.output) != config.model:
        raise UserError(f"{config.output} holds another model than these settings describe: choose another output")


def describe_model(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Write the config and the tokenizer of a new run."""
    save_description(config.output, config.model, tokenizer)


def write_settings(config: TrainConfig) -> None:
    """Write the settings of a new run, or of one that is resumed with changes."""
    write_text(config.output / SETTINGS, json.dumps(config.to_dict(), indent=2) + "\n")


def append_sample(run: Path, step: int, text: str) -> None:
    """Append a sample to `samples.txt`."""
    with (run / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n\n")
