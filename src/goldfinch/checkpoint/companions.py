"""Files next to a published `.pth` that say what it does not: its config, its tokenizer and its chat template."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from goldfinch.checkpoint.reference_config import described_config, describes_model, model_config_to_reference
from goldfinch.config import ModelConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.json_yaml import read_yaml


class CompanionPaths(NamedTuple):
    """Where they lie: model.yaml, model.tokenizer.json and model.chat_template.jinja for model.pth."""

    config: Path
    tokenizer: Path
    chat_template: Path

    @classmethod
    def of(cls, pth: Path) -> "CompanionPaths":
        """Those of a `.pth`."""
        return cls(*(pth.with_suffix(ending) for ending in (".yaml", ".tokenizer.json", ".chat_template.jinja")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companions:
    """What they hold; None for those that are not there."""

    config: ModelConfig | None = None
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None


def read_companions(pth: Path) -> Companions:
    """What lies next to a `.pth`. A YAML file that is about something else is left alone.

    Raises:
        UserError: a file cannot be read, or describes no possible model.
    """
    paths = CompanionPaths.of(pth)
    values: Any = read_yaml(paths.config) if paths.config.is_file() else None
    try:
        config = described_config(values) if describes_model(values) else None
    except UserError as error:
        raise UserError(f"{paths.config}: {error}") from error
    return Companions(
        config=config,
        tokenizer=load_tokenizer(paths.tokenizer) if paths.tokenizer.is_file() else None,
        chat_template=ChatTemplate.read(paths.chat_template) if paths.chat_template.is_file() else None,
    )


def write_companions(pth: Path, companions: Companions) -> None:
    """Write them; what there is none of, and an earlier `.pth` of this name had, is removed.

    The config is written in the reference's keys, or, for a model that they cannot describe, as our own.
    """
    paths = CompanionPaths.of(pth)
    for path in paths:
        path.unlink(missing_ok=True)
    if companions.config is not None:
        write_text(paths.config, yaml.safe_dump({"model": _describing(companions.config)}, sort_keys=False))
    if companions.tokenizer is not None:
        companions.tokenizer.save(paths.tokenizer)
    if companions.chat_template is not None:
        write_text(paths.chat_template, companions.chat_template.standalone)


def _describing(config: ModelConfig) -> dict[str, Any]:
    try:
        return model_config_to_reference(config)
    except UserError:
        return config.to_dict()
