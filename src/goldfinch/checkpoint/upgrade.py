"""Turning a pre-trained Finch into a GoldFinch, in both ways of the paper (SPEC 8).

GOLD layers are appended, or stand in place of time mixes. The layers below them stay as they are, to the bit, and what
is new starts as the identity.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from torch import nn

from goldfinch.checkpoint.convert import read_model
from goldfinch.checkpoint.model_folder import WEIGHTS, compute_dtype
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import split_plan


class Base(NamedTuple):
    """A model to upgrade, and what goes with it."""

    model: Decoder
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None


def read_finch(source: Path) -> Base:
    """The model to upgrade, in the dtype of most of its stored numbers.

    Args:
        source: as in `read_model`.

    Raises:
        UserError: as `read_model`, or it has layers that are not Finch.
    """
    config, weights, tokenizer, chat_template = read_model(source)
    others = sorted({kind for kind in config.time_mixes if not TIME_MIXES[kind].is_recurrent})
    if "gold" in others:
        raise UserError(
            f"{source} already has GOLD layers: continue training it with `goldfinch train --initial {source} ...`"
        )
    if others:
        raise UserError(
            f"{source} has {others[0]} layers: only a Finch can be upgraded, whose layers are all recurrent"
        )
    dtype = compute_dtype(source / WEIGHTS if source.is_dir() else source, weights)
    model = Decoder.on_meta(config)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return Base(model, tokenizer, chat_template)


def upgraded_config(
    base: ModelConfig, gold: str, latent_ratio: int = 16, rope: RopeConfig | None = None
) -> ModelConfig:
    """The config of an upgraded Finch.

    Args:
        base: its config.
        gold: "append:4" to add four GOLD layers before the head; "replace:1/3" to replace the time mixes of the last
            third of the layers.
        latent_ratio: D / R.
        rope: positions in the GOLD layers; None for none.

    Raises:
        UserError: `gold` is invalid, or leaves no layer below GOLD.
    """
    written = re.fullmatch(r"(append):(\d{1,3})|(replace):1/(\d{1,3})", gold)
    number = int(written[2] or written[4]) if written else 0
    if written is None or number < 1:
        raise UserError(f"invalid --gold value {gold!r}: give append:N or replace:1/N, such as append:4 or replace:1/3")
    kind: str = "gold"
    if written[1]:
        plan = base.time_mixes + (kind,) * number
    else:
        first = split_plan("finch", kind, base.num_layers, number).index(kind)
        if first == 0:
            raise UserError(f"replace:1/{number} of {base.num_layers} layers leaves none below GOLD: replace fewer")
        plan = base.time_mixes[:first] + (kind,) * (base.num_layers - first)
    return dataclasses.replace(base, time_mixes=plan, latent_ratio=latent_ratio, rope=rope)


def upgrade(base: Decoder, config: ModelConfig, seed: int = 0) -> Decoder:
    """A model with the base's weights, which it shares, and new GOLD layers (SPEC 7), W_KD and W_KU in the base's type.

    Args:
        base: a Finch.
        config: of `upgraded_config`.
        seed: of the new weights.
    """
    model = Decoder.on_meta(config).to(base.dtype)
    parts = new_parts(model, base.config)
    new = {parameter for part in parts for parameter in part.parameters()}
    kept = [name for name, parameter in model.named_parameters() if parameter not in new]
    weights = base.state_dict()
    model.load_state_dict({name: weights[name] for name in kept}, strict=False, assign=True)
    for part in parts:
        part.to_empty(device=base.device)
    initialize(model, seed, parts)
    return model


def new_parts(model: Decoder, base: ModelConfig) -> list[nn.Module]:
    """The modules of an upgraded model that its base does not have: blocks at the top, or time mixes, and TokenCat."""
    assert model.token_cat is not None
    plan = model.config.time_mixes
    replaced = [layer for layer, kind in enumerate(base.time_mixes) if plan[layer] != kind]
    mixes = [model.blocks[layer].get_submodule("time_mix") for layer in replaced]
    return [*model.blocks[base.num_layers :], *mixes, model.token_cat]


def old_weights_slowly(base: ModelConfig, upgraded: ModelConfig, rate: float) -> tuple[str, ...]:
    """`OptimizerConfig.learning_rate_multipliers` that slow the weights of the base down, by `rate`."""
    model = Decoder.on_meta(upgraded)
    parts = set(new_parts(model, base))
    return f"*={rate:g}", *(f"{name}.*=1" for name, module in model.named_modules() if module in parts)
