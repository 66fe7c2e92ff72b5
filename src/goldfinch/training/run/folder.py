"""The folder of a run: whether a run can start or resume in it, its settings, its samples."""

import json
from collections.abc import Sequence
from pathlib import Path

from goldfinch.checkpoint.model_folder import MODEL_FILES, read_config, save_description
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.mixture import Source
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import remove_abandoned, write_text
from goldfinch.json_yaml import read_json
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.checkpoint import FOLDER
from goldfinch.training.run.metrics import FILE as METRICS
from goldfinch.training.run.metrics import PLOT

SETTINGS, SAMPLES, DATA = "training.json", "samples.txt", "data.json"


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


def trained_length(folder: Path) -> int | None:
    """The sequence length that the model in a folder was trained with; None if it is no training run."""
    return read_settings(folder).sequence_length if (folder / SETTINGS).exists() else None


def check_new(run: Path) -> None:
    """Raise a UserError if the folder holds a run already, or other files that a run would overwrite."""
    if (run / SETTINGS).exists():
        raise UserError(
            f"{run} already holds a run: resume it with `goldfinch train --resume {run}`, "
            "replace it with --overwrite, or choose another folder"
        )
    taken = [name for name in (*MODEL_FILES, FOLDER, METRICS) if (run / name).exists()]
    if taken or run.is_file():
        raise UserError(f"{run / ''.join(taken[:1])} exists: choose another output folder")


def check_resumable(config: TrainConfig) -> None:
    """Raise a UserError if the folder holds another model than the settings describe."""
    if read_config(config.output) != config.model:
        raise UserError(f"{config.output} holds another model than these settings describe: choose another output")


def check_data(run: Path, sources: Sequence[str], fingerprint: list[dict[str, str]]) -> None:
    """Check that the data of a run that is resumed is the data that it was started with.

    Args:
        run: its folder.
        sources: the data, as in the settings.
        fingerprint: of that data, `TrainingData.fingerprint`.

    Raises:
        UserError: it is other data, or the folder holds no run.
    """
    path = run / DATA
    if not path.exists():
        raise UserError(f"{run} holds no training run: {DATA} is missing")
    recorded = read_json(path)
    if not isinstance(recorded, list) or not all(isinstance(each, dict) for each in recorded):
        raise UserError(f"{path} is corrupt: it is not a list of data sources; restore it")
    if len(recorded) != len(sources):
        raise UserError(
            f"{run} was started with {len(recorded)} sources of data, not {len(sources)}: give all of them with --data"
        )
    for source, before, now in zip(sources, recorded, fingerprint, strict=True):
        folder = Source.parse(source).folder
        if before.get("tokenizer") != now["tokenizer"]:
            raise UserError(
                f"{folder} has another tokenizer than {run} was started with: restore that data, or train a new model"
            )
        if before.get("tokens") != now["tokens"]:
            raise UserError(
                f"{folder} holds other data than {run} was started with: restore that data, or start a new run from "
                f"these weights: goldfinch train --initial {run} --data {folder} -o NEW_RUN"
            )


def write_data(run: Path, fingerprint: list[dict[str, str]]) -> None:
    """Record the data of a new run, for `check_data`."""
    write_text(run / DATA, json.dumps(fingerprint, indent=2) + "\n")


def remove_temporary_files(run: Path) -> None:
    """Remove the unfinished files that a killed run has left in its folder."""
    for name in (SETTINGS, DATA, *MODEL_FILES, METRICS, PLOT):
        remove_abandoned(run / name)


def describe_model(config: TrainConfig, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> None:
    """Write the config, the tokenizer and the chat template of a new run; by default that of the initial model."""
    if chat_template is None and config.initial is not None:
        chat_template = ChatTemplate.load(config.initial)
    save_description(config.output, config.model, tokenizer, chat_template)


def write_settings(config: TrainConfig) -> None:
    """Write the settings of a new run, or of one that is resumed with changes."""
    write_text(config.output / SETTINGS, json.dumps(config.to_dict(), indent=2) + "\n")


def append_sample(run: Path, step: int, text: str) -> None:
    """Append a sample to `samples.txt`."""
    with (run / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n\n")
