"""The published tensor names (SPEC 9), in both directions; no other module knows them."""

import dataclasses
import functools

import torch
from torch import Tensor

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.layers.initial_values import bonus
from goldfinch.model import Decoder
from goldfinch.model.accounting import UNUSED_BONUS

# published name under `blocks.{l}.att.` -> our name under `blocks.{l}.time_mix.`; `[i]` is row i of our tensor.
_FINCH_COMMON = {
    "time_maa_x": "ddlerp.mu_x",
    "time_maa_w1": "ddlerp.low_rank.a",
    "time_maa_w2": "ddlerp.low_rank.b",
    "time_decay": "decay.base",
    "time_decay_w1": "decay.low_rank.a",
    "time_decay_w2": "decay.low_rank.b",
    "receptance.weight": "receptance.weight",
    "key.weight": "key.weight",
    "value.weight": "value.weight",
    "output.weight": "output.weight",
    "ln_x.weight": "norm.weight",
    "ln_x.bias": "norm.bias",
}
_FINCH_C2 = _FINCH_COMMON | {
    **{f"time_maa_{use}": f"ddlerp.mu[{row}]" for row, use in enumerate(("r", "k", "v", "w", "v2"))},
    "time_value2_w1": "second_value.a",
    "time_value2_w2": "second_value.b",
}
_TIME_MIX: dict[str, dict[str, str]] = {
    "finch": _FINCH_COMMON
    | {
        **{f"time_maa_{use}": f"ddlerp.mu[{row}]" for row, use in enumerate(("w", "k", "v", "r", "g"))},
        "time_faaaa": "bonus",
        "gate.weight": "gate.weight",
    },
    "finch_c2": _FINCH_C2,
    "finch_c2_no_one_minus_w": _FINCH_C2,
    "finch_c2_no_v2": _FINCH_C2 | {"time_faaaa": "bonus"},
    "gptalpha": {
        "time_maa_x": "ddlerp.mu_x",
        **{f"time_maa_{use}": f"ddlerp.mu[{row}]" for row, use in enumerate(("r", "k", "v"))},
        "time_maa_w1": "ddlerp.low_rank.a",
        "time_maa_w2": "ddlerp.low_rank.b",
        **{f"{name}.weight": f"{name}.weight" for name in ("query", "key", "value", "output")},
        **{
            f"ln_{theirs}.{part}": f"{ours}norm.{part}"
            for theirs, ours in (("r", "query_"), ("k", "key_"), ("v", "value_"), ("x", ""))
            for part in ("weight", "bias")
        },
    },
    "gold": {
        "time_maa_x": "ddlerp.mu_x",
        "time_maa_q": "ddlerp.mu[0]",
        "time_maa_q_w1": "ddlerp.low_rank.a",
        "time_maa_q_w2": "ddlerp.low_rank.b",
        "time_maa_v_cache": "mu_e",
        "time_maa_k": "mu_k",
        "time_maa_v": "mu_v",
        "time_maa_kv_w1": "shift_low_rank.a",
        "time_maa_kv_w2": "shift_low_rank.b",
        "time_key_w1": "key_adapter.a",
        "time_key_w2": "key_adapter.b",
        "time_value_w1": "value_adapter.a",
        "time_value_w2": "value_adapter.b",
        "query.weight": "query.weight",
        "output.weight": "output.weight",
        **{
            f"ln_{theirs}.{part}": f"{ours}norm.{part}"
            for theirs, ours in (("q", "query_"), ("k", "key_"), ("v", "value_"), ("x", ""))
            for part in ("weight", "bias")
        },
    },
    "llama": {"wq.weight": "query.weight", "wk.weight": "key.weight", "wv.weight": "value.weight"}
    | {"wo.weight": "output.weight"},
}
_CHANNEL_MIX = {
    "rwkv": {"time_maa_k": "mu_k", "time_maa_r": "mu_r"}
    | {f"{name}.weight": f"{name}.weight" for name in ("key", "receptance", "value")},
    "swiglu": {"w1.weight": "gate.weight", "w2.weight": "down.weight", "w3.weight": "up.weight"},
}


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One tensor in both namings."""

    reference: str
    ours: str
    row: int | None
    """The reference's tensor is this row of ours; None: all of it."""
    shape: tuple[int, ...]
    """In the reference."""


def tensor_names(config: ModelConfig) -> list[TensorName]:
    """Every tensor that a published checkpoint of this model must hold."""
    for kind in config.time_mixes:
        if kind not in _TIME_MIX:
            raise UserError(f"published checkpoints have no time mix {kind!r}, only {', '.join(_TIME_MIX)}")
    ours = _our_shapes(config)
    pairs = {"emb.weight": "embedding.weight", "head.weight": "head.weight"}
    for part in ("weight", "bias"):
        pairs[f"blocks.0.ln0.{part}"] = f"embedding_norm.{part}"
        pairs[f"ln_out.{part}"] = f"output_norm.{part}"
    for layer, kind in enumerate(config.time_mixes):
        block = f"blocks.{layer}."
        for part in ("weight", "bias"):
            pairs[f"{block}ln1.{part}"] = f"{block}time_mix_norm.{part}"
            pairs[f"{block}ln2.{part}"] = f"{block}channel_mix_norm.{part}"
        pairs |= {f"{block}att.{r}": f"{block}time_mix.{o}" for r, o in _TIME_MIX[kind].items()}
        pairs |= {f"{block}ffn.{r}": f"{block}channel_mix.{o}" for r, o in _CHANNEL_MIX[config.channel_mix].items()}
    if config.num_gold_layers:
        pairs |= {"w_kv_cache_a.weight": "token_cat.down.weight", "w_kv_cache_b.weight": "token_cat.up.weight"}
    names = []
    for reference, our in pairs.items():
        name, _, index = our.rstrip("]").partition("[")
        row = int(index) if index else None
        shape = ours[name] if row is None else ours[name][1:]
        names.append(TensorName(reference, name, row, _reference_shape(reference, shape)))
    return names


@functools.lru_cache(maxsize=8)  # each conversion asks more than once, and building all those modules takes its time
def _our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}


def _reference_shape(reference: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Mixing vectors and decays are stored as (1, 1, D); the second factor of a single lora without our leading 1."""
    if len(shape) == 1 and reference.rpartition(".")[2].startswith("time_"):
        return (1, 1, *shape)
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    return shape


def from_reference(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Published tensors -> our state dict, without copying where a view will do.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; the message lists all of them.
    """
    names = tensor_names(config)
    wanted = {name.reference: name.shape for name in names}
    known = wanted | {name: tuple(tensor.shape) for name, tensor in _unused(config).items()}
    missing = [name for name in wanted if name not in tensors]
    left_over = sorted(tensors.keys() - known.keys())
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in known.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{what}: {', '.join(which)}"
        for what, which in (("missing", missing), ("unexpected", left_over), ("of another shape", misshapen))
        if which
    ]
    if problems:
        raise UserError("the checkpoint does not fit the model config (check --config): " + "; ".join(problems))
    rows: dict[str, dict[int, Tensor]] = {}
    ours: dict[str, Tensor] = {}
    for name in names:
        tensor = tensors[name.reference]
        if name.row is None:
            ours[name.ours] = tensor.reshape(_our_shapes(config)[name.ours])
        else:
            rows.setdefault(name.ours, {})[name.row] = tensor.flatten()
    ours |= {name: torch.stack([parts[row] for row in sorted(parts)]) for name, parts in rows.items()}
    return ours


def to_reference(ours: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict -> published tensors; the bonus that Finch-C2 never uses gets its initial value."""
    tensors = {}
    for name in tensor_names(config):
        tensor = ours[name.ours] if name.row is None else ours[name.ours][name.row]
        tensors[name.reference] = tensor.reshape(name.shape).contiguous()
    dtype = ours["embedding.weight"].dtype
    return tensors | {name: tensor.to(dtype) for name, tensor in _unused(config).items()}


def _unused(config: ModelConfig) -> dict[str, Tensor]:
    """What a published checkpoint may hold without using it, at its initial value."""
    return {
        f"blocks.{layer}.att.time_faaaa": bonus(layer, config.num_layers, config.num_heads, config.head_size)
        for layer, kind in enumerate(config.time_mixes)
        if kind in UNUSED_BONUS
    }
