"""The initial weights of a run: random, or those of another model (`TrainConfig.initial`)."""

import dataclasses
from pathlib import Path

from goldfinch.checkpoint.model_folder import TOKENIZER, read_config, read_tokenizer, read_weights
from goldfinch.config import ModelConfig
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import TrainConfig


def check_initial(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Check `config.initial` before the model is built; `tokenizer` is that of the data.

    Raises:
        UserError: the folder is missing or corrupt, holds a model that differs from `config.model` in more than its
            positions, or has another tokenizer than the data.
    """
    if config.initial is not None:
        stored = read_config(config.initial)
        _check_model(config.initial, stored, config.model)
        _check_tokenizer(config.initial, stored, config.data[0], tokenizer)


def set_initial_weights(model: Decoder, config: TrainConfig) -> None:
    """Set every parameter of a new run's model, in the model's dtype, whatever the dtype of stored weights.

    Raises:
        UserError: the weights in the folder of `config.initial` are missing, corrupt or of another model.
    """
    if config.initial is None:
        initialize(model, config.seed)
    else:
        _check_model(config.initial, read_config(config.initial), config.model)
        model.load_state_dict(read_weights(config.initial, Decoder.on_meta(config.model)))


def _check_model(folder: Path, stored: ModelConfig, wanted: ModelConfig) -> None:
    for field in dataclasses.fields(ModelConfig):
        theirs, ours = getattr(stored, field.name), getattr(wanted, field.name)
        if field.name != "rope" and theirs != ours:
            raise UserError(
                f"the model in {folder} has model.{field.name} {theirs}, not {ours}: leave that setting out; "
                "only model.rope may be changed"
            )


def _check_tokenizer(folder: Path, stored: ModelConfig, data: str, tokenizer: Tokenizer) -> None:
    theirs = read_tokenizer(folder, stored)
    if theirs is not None and theirs.hash != tokenizer.hash:
        raise UserError(
            f"{data} was made with another tokenizer than the model in {folder}: prepare it again with "
            f"`goldfinch data prepare ... --tokenizer {folder / TOKENIZER}`"
        )
