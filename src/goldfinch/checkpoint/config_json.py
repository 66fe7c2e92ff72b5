"""`config.json` of a model folder: a model config under the names of Hugging Face, which transformers reads as well."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from goldfinch.argument_checks import shortened
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError

MODEL_TYPE = "goldfinch"
"""`model_type`, of every layer plan; it says that a folder is one of ours."""
ARCHITECTURE = "GoldFinchForCausalLM"
VERSION = 2
NAMES = {"width": "hidden_size", "channel_width": "intermediate_size"}
"""Field of `ModelConfig` -> its name in the file, where they differ. `head_size` is stored as `num_attention_heads`."""
RECURRENT, ATTENTION = "linear_attention", "full_attention"
"""What `layer_types` calls layers."""


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The content of the file, as plain JSON types."""
    description = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, "format_version": VERSION}
    return description | fields_in_file(config)


def fields_in_file(config: ModelConfig) -> dict[str, Any]:
    """The fields of a model config under the file's names, the inverse of `model_fields`."""
    fields = {NAMES.get(name, name): value for name, value in config.to_dict().items() if name != "head_size"}
    return fields | {"num_attention_heads": config.num_heads, "num_hidden_layers": config.num_layers}


def from_json(content: object) -> ModelConfig:
    """The model config in the file's content, whoever wrote it; fields that are none of a model's are ignored.

    Raises:
        UserError: it is not a config of ours, of a newer version, or of no possible model.
    """
    if isinstance(content, dict) and content.get("format") == "goldfinch" and isinstance(content.get("model"), dict):
        return ModelConfig.from_dict(content["model"])  # version 1, before the names were Hugging Face's
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        raise UserError("not a GoldFinch config; convert published checkpoints with `goldfinch convert`")
    version = content.get("format_version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"format_version is {shortened(version)}, this program reads {VERSION}: update goldfinch")
    return ModelConfig.from_dict(model_fields(content))


def model_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` among values under the file's names.

    Raises:
        UserError: the heads do not divide the width, or the number of layers is not that of the plan.
    """
    names = {field.name: NAMES.get(field.name, field.name) for field in dataclasses.fields(ModelConfig)}
    fields = {field: content[name] for field, name in names.items() if name in content and field != "head_size"}
    width, heads = content.get("hidden_size"), content.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int):
        if heads < 1 or width % heads:
            raise UserError(
                f"hidden_size {shortened(width)} must be a multiple of num_attention_heads {shortened(heads)}"
            )
        fields["head_size"] = width // heads
    layers, plan = content.get("num_hidden_layers"), content.get("time_mixes")
    if isinstance(plan, (list, tuple)) and layers not in (None, len(plan)):
        raise UserError(f"num_hidden_layers is {shortened(layers)}, but time_mixes names {len(plan):,} layers")
    return fields
