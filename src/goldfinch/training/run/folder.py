"""The folder of a run: whether it can be begun or gone on with, its settings, its samples."""

import json
from pathlib import Path

from goldfinch.checkpoint.model_folder import CONFIG, TOKENIZER, WEIGHTS, read_config, save_description
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.checkpoint import FOLDER
from goldfinch.training.run.metrics import FILE as METRICS

SETTINGS, SAMPLES = "training.json", "samples.txt"


def read_settings(run: Path) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        UserError: the folder holds no run.
    """
    path = run / SETTINGS
    try:
        return TrainConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{run} holds no training run: {SETTINGS} is missing") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken: {error}") from error


def check_new(run: Path) -> None:
    """Raise a UserError where there is a run already, or anything else that a run would write."""
    if (run / SETTINGS).exists():
        raise UserError(f"{run} holds a run already: go on with `goldfinch train --resume {run}`")
    taken = [name for name in (CONFIG, WEIGHTS, TOKENIZER, FOLDER, METRICS) if (run / name).exists()]
    if taken or run.is_file():
        raise UserError(f"{run / ''.join(taken[:1])} is in the way: choose another output folder")


def check_resumable(config: TrainConfig) -> None:
    """Raise a UserError where the folder holds another model than the settings describe."""
    if read_config(config.output) != config.model:
        raise UserError(f"{config.output} holds another model than these settings describe: choose another output")


def describe_model(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Write what a new run's weights will be read with."""
    save_description(config.output, config.model, tokenizer)


def write_settings(config: TrainConfig) -> None:
    """Store the settings, of a new run or as they are changed in resuming one."""
    write_text(config.output / SETTINGS, json.dumps(config.to_dict(), indent=2) + "\n")


def append_sample(run: Path, step: int, text: str) -> None:
    """Add what the model has written to `samples.txt`."""
    with (run / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n\n")
