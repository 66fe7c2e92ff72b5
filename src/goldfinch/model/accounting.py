"""What a model costs: parameters, FLOPs and bytes (SPEC 4-6), from its module tree on the meta device.

FLOPs: a multiply-add is 2. Products with weights, WKV6 and attention are counted; norms, activations and interpolations
are not (below 1%). Bytes: bf16 numbers, except S of the recurrent layers, which is fp32.
"""

import dataclasses
import json
import math
from typing import cast

import torch
from torch import nn

from goldfinch.config import ModelConfig
from goldfinch.costs import DEFAULT_ID_BYTES, DEFAULT_SEQUENCE_LENGTH, Accounting
from goldfinch.errors import UserError
from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.mixers import TimeMix
from goldfinch.mixers.time_mix import product_flops
from goldfinch.model.block import Block
from goldfinch.model.decoder import Decoder
from goldfinch.presets import model_config, preset_names

UNUSED_BONUS: tuple[str, ...] = ("finch_c2", "finch_c2_no_one_minus_w")
"""Kinds for which the published checkpoints store Finch's bonus u, D numbers a layer, and never use it."""
_BF16, _FP32 = torch.bfloat16.itemsize, torch.float32.itemsize
# Scores and weighted sum: a multiply-add per channel each, for every pair of query and key.
_ATTENTION_FLOPS_PER_CHANNEL = 2 + 2
TRAINING_PASSES = 3
"""Forward 1, backward 2: gradients of the inputs and of the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer's part, per token."""

    flops: int
    """Forward, without attention, which grows with the context."""
    attends: bool
    """Whether attention comes on top of `flops`."""
    recurrence_flops: int = 0
    """The part of `flops` that is WKV6."""
    expansion_flops: int = 0
    """The part of `flops` that GOLD repeats for every token that it rebuilds."""
    cache_bytes: int = 0
    """Without the key cache, which belongs to no layer."""
    state_bytes: int


def account(
    config: ModelConfig, sequence_length: int = DEFAULT_SEQUENCE_LENGTH, id_bytes: int = DEFAULT_ID_BYTES
) -> Accounting:
    """Count what a model costs; takes no memory, whatever its size.

    Args:
        config: the model.
        sequence_length: tokens, for the FLOPs.
        id_bytes: bytes per token id in the key cache: 4, as in the paper's figures, or 2 for up to 65536 ids.

    Raises:
        UserError: `sequence_length` is below 1, or `id_bytes` cannot hold the ids.
    """
    if sequence_length < 1:
        raise UserError(f"sequence_length must be at least 1, not {sequence_length}")
    if id_bytes not in (2, 4) or config.vocab_size > 2 ** (8 * id_bytes):
        raise UserError(f"{config.vocab_size} token ids do not fit in {id_bytes} bytes each: use 4")
    model = Decoder.on_meta(config)
    layers = [_layer(cast(Block, block), config) for block in model.blocks]
    lower = layers[: config.first_gold_layer]
    compress = expand = latent_bytes = 0
    if model.token_cat is not None:
        compress, expand = product_flops(model.token_cat.down), product_flops(model.token_cat.up)
        latent_bytes = config.latent_width * _BF16 + id_bytes
    per_token = sum(layer.flops for layer in layers) + compress + expand + product_flops(model.head)
    rebuilding = sum(layer.expansion_flops for layer in layers) + expand

    def attention(layers: list[_Layer], keys: float) -> int:
        """FLOPs of one query per attention layer, on `keys` keys."""
        return round(_ATTENTION_FLOPS_PER_CHANNEL * config.width * keys) * sum(layer.attends for layer in layers)

    mean_keys = (sequence_length + 1) / 2
    decode = per_token + attention(layers, sequence_length)
    parameters = _parameters(model)
    return Accounting(
        sequence_length=sequence_length,
        parameters=parameters,
        parameters_as_published=parameters + config.width * sum(kind in UNUSED_BONUS for kind in config.time_mixes),
        embedding_parameters=_parameters(model.embedding) + _parameters(model.head),
        training_flops_per_token=TRAINING_PASSES * (per_token + attention(layers, mean_keys)),
        prefill_flops_per_token=sum(layer.flops for layer in lower) + compress + attention(lower, mean_keys),
        decode_flops_per_token=decode,
        decode_rebuilding_flops_per_token=decode + (sequence_length - 1) * rebuilding,
        recurrence_flops_per_token=sum(layer.recurrence_flops for layer in layers),
        cache_bytes_per_token=sum(layer.cache_bytes for layer in layers) + latent_bytes,
        state_bytes=sum(layer.state_bytes for layer in layers),
        transformer_bytes_per_token=2 * _BF16 * config.width * config.num_layers,
    )


def _layer(block: Block, config: ModelConfig) -> _Layer:
    """Count one layer."""
    mixer = block.time_mix
    fixed, growing = (_state_bytes(mixer, config, num_tokens) for num_tokens in (0, 1))
    shift_bytes = _BF16 * config.width if isinstance(block.channel_mix, RwkvChannelMix) else 0
    return _Layer(
        flops=product_flops(block) + mixer.extra_flops(),
        attends=mixer.attends,
        recurrence_flops=mixer.recurrence_flops(),
        expansion_flops=mixer.expansion_flops(),
        cache_bytes=growing - fixed,
        state_bytes=fixed + shift_bytes,
    )


def _state_bytes(mixer: TimeMix, config: ModelConfig, num_tokens: int) -> int:
    """Bytes of a time mix's state after `num_tokens` tokens."""
    fp32 = getattr(mixer.state_type, "FP32_FIELDS", ())
    return sum(
        math.prod(shape) * (_FP32 if name in fp32 else _BF16)
        for name, shape in mixer.state_shapes(config, num_tokens).items()
        if shape is not None
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Print the costs of all presets as JSON."""
    costs = {name: dataclasses.asdict(account(model_config(name))) for name in preset_names()}
    print("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in costs.items()) + "\n}")


if __name__ == "__main__":
    main()
