"""The folder of a run: its settings, and whether it can be begun or gone on with."""

import json
from pathlib import Path

from goldfinch.checkpoint.native import CONFIG, TOKENIZER, WEIGHTS, read_config, save_description
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.training.checkpoint import FOLDER
from goldfinch.training.config import TrainConfig
from goldfinch.training.metrics import FILE as METRICS

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


def begin(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Make the folder of a new run.

    Raises:
        UserError: there is a run in it already, or anything else that a run would write.
    """
    run = config.output
    if (run / SETTINGS).exists():
        raise UserError(f"{run} holds a run already: go on with `goldfinch train --resume {run}`")
    taken = [name for name in (CONFIG, WEIGHTS, TOKENIZER, FOLDER, METRICS) if (run / name).exists()]
    if taken or run.is_file():
        raise UserError(f"{run / ''.join(taken[:1])} is in the way: choose another output folder")
    save_description(run, config.model, tokenizer)
    write_settings(config)


def check_resumable(config: TrainConfig) -> None:
    """Raise a UserError where the folder holds another model than the settings describe."""
    if read_config(config.output) != config.model:
        raise UserError(f"{config.output} holds another model than these settings describe: choose another output")


def write_settings(config: TrainConfig) -> None:
    """Store the settings: once the run has begun, or has been resumed with some changed."""
    write_text(config.output / SETTINGS, json.dumps(config.to_dict(), indent=2) + "\n")


def append_sample(run: Path, step: int, text: str) -> None:
    """Add what the model has written to `samples.txt`."""
    with (run / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n\n")
