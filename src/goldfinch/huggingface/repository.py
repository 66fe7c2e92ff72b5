"""A repository folder for the Hugging Face Hub: all that transformers, `gf.load` and people need of a model."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import GenerationConfig

from goldfinch.checkpoint.config_json import ARCHITECTURE
from goldfinch.checkpoint.convert import Converted, StoredModel, describe, read_model
from goldfinch.checkpoint.model_folder import (
    MODEL_FILES,
    SHARDS,
    check_model_output,
    main_dtype,
    name_in_file,
    save_description,
    save_weights,
    untie,
    writing,
)
from goldfinch.devices import dtype_name
from goldfinch.files import atomic_directory, write_text
from goldfinch.huggingface.auto_map import CODE_FILE
from goldfinch.huggingface.configuration import GoldFinchConfig
from goldfinch.huggingface.model_card import CARD, model_card

GENERATION_CONFIG = "generation_config.json"
_FILES = {*MODEL_FILES, SHARDS, GENERATION_CONFIG, CARD, CODE_FILE}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def export_repository(source: Path, output: Path, shard_bytes: int, *, overwrite: bool = False) -> Converted:
    """Write the repository folder of a model, atomically, with every weight in its own dtype.

    Args:
        source: a folder of ours or a `.pth`; see `read_model`. The model card tells of the training if the folder is
            that of a run; a card that is there already is kept.
        output: the folder to write.
        shard_bytes: size at which the weights are split into several files.
        overwrite: replace `output` if it holds such a repository and nothing else.

    Raises:
        UserError: `source` is not a model or is corrupt, or `output` exists or cannot be written.
    """
    check_model_output(output, overwrite, lambda name: name in _FILES or bool(_SHARD.fullmatch(name)))
    model = read_model(source)
    card = model_card(source, output.resolve().name, model)
    special = _special_tokens(model)
    config = GoldFinchConfig.from_model_config(
        model.config, architectures=[ARCHITECTURE], dtype=dtype_name(main_dtype(model.weights)), **special
    )
    with writing(output), atomic_directory(output, replace=overwrite) as folder:
        save_description(folder, model.config, model.tokenizer, model.chat_template)
        config.save_pretrained(folder)  # the same with what else transformers reads there
        GenerationConfig(**special).save_pretrained(folder)
        _save_shards(folder, untie(model.weights), shard_bytes)
        card.save(folder / CARD)
    return describe(model.config, model.weights, model.tokenizer)


def _special_tokens(model: StoredModel) -> dict[str, Any]:
    """Ids of the tokens that texts begin and end with and are padded with; none without a tokenizer."""
    if model.tokenizer is None:
        return {}
    end = model.tokenizer.end_of_text
    stop = model.chat_template.stop(model.tokenizer) if model.chat_template is not None else ()
    ends = [end, *(token for token in stop if isinstance(token, int) and token != end)]
    return {"bos_token_id": end, "eos_token_id": ends if len(ends) > 1 else end, "pad_token_id": end}


def _save_shards(folder: Path, weights: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Write `model.safetensors`, or several files and the list of what they hold."""
    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        save_weights(folder, {name: weights[name] for name in names}, file)
    if split.is_sharded:
        places = {name_in_file(name): file for name, file in split.tensor_to_filename.items()}
        content = {"metadata": split.metadata, "weight_map": dict(sorted(places.items()))}
        write_text(folder / SHARDS, json.dumps(content, indent=2) + "\n")
