"""The reference's own yaml and json config files -> `ModelConfig`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from goldfinch.config import ModelConfig, RopeConfig, TimeMixKind
from goldfinch.errors import UserError
from goldfinch.presets import split_plan

_TIME_MIXES: dict[str, TimeMixKind] = {
    "x060": "finch",
    "x060c2": "finch_c2",
    "gptalpha": "gptalpha",
    "gold": "gold",
    "llama": "llama",
}
_CHANNEL_MIXES = {"x060": "rwkv", "rwkv": "rwkv", "llama": "swiglu"}


def read_reference_config(paths: list[Path]) -> ModelConfig:
    """Merge the files' `model:` sections (or the files, where they have none), later ones over earlier ones.

    Raises:
        UserError: a file that cannot be read, a key that is needed and missing, or a value that is not known.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged |= _read_section(path)
    return model_config_from_reference(merged)


def _read_section(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {error}") from error
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid yaml or json: {' '.join(str(error).split())}") from error
    section = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} must hold a mapping of model settings, or a `model:` section with one")
    return section


def model_config_from_reference(values: Mapping[str, Any]) -> ModelConfig:
    """The reference's keys -> our config. Keys that do not shape the model (dropout, context length) are ignored."""
    for key in ("n_layer", "n_embd", "vocab_size", "tmix"):
        if key not in values:
            raise UserError(f"the reference config lacks {key!r}; give the file that has it with another --config")
    layers = int(values["n_layer"])
    lower = _known(_TIME_MIXES, "tmix", values["tmix"])
    if lower == "finch_c2":
        lower = _ablation(values)
    upper = _known(_TIME_MIXES, "tmix2", values["tmix2"]) if values.get("tmix2") else lower
    rope = values.get("rope")
    return ModelConfig(
        vocab_size=int(values["vocab_size"]),
        width=int(values["n_embd"]),
        time_mixes=split_plan(lower, upper, layers, int(values.get("inv_other_layer_ratio", 3))),
        channel_mix=_known(_CHANNEL_MIXES, "cmix", values.get("cmix") or ("llama" if lower == "llama" else "x060")),
        channel_width=_channel_width(values),
        head_size=int(values.get("head_size", 64)),
        latent_ratio=int(values.get("kv_cache_compression_ratio", 16)),
        rope=RopeConfig(**{name: float(value) for name, value in rope.items()}) if rope else None,
    )


def _ablation(values: Mapping[str, Any]) -> TimeMixKind:
    use_v2, use_one_minus_w = bool(values.get("use_v2", True)), bool(values.get("use_one_minus_w", True))
    if use_v2 and use_one_minus_w:
        return "finch_c2"
    if use_v2:
        return "finch_c2_no_one_minus_w"
    if use_one_minus_w:
        return "finch_c2_no_v2"
    raise UserError("use_v2 and use_one_minus_w are both off: the paper has no such model, and neither have we")


def _channel_width(values: Mapping[str, Any]) -> int:
    """`dim_ffn`, which SwiGLU layers of the reference do not look at; 0 for the usual width."""
    return 0 if values.get("cmix") == "llama" else int(values.get("dim_ffn") or 0)


def _known(table: Mapping[str, Any], key: str, value: object) -> Any:
    if value not in table:
        raise UserError(f"unknown {key} {value!r} in the reference config; known: {', '.join(table)}")
    return table[str(value)]


def infer_finch_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The config of a pure Finch (RWKV-6 World) checkpoint, from its shapes alone.

    Raises:
        UserError: a layer is not Finch; then a config file must say what the model is.
    """
    layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
    wanted = ["time_maa_g", "time_maa_w1", "time_decay_w1", "time_faaaa"]
    if not layers or any(f"blocks.{layer}.att.{name}" not in tensors for layer in range(layers) for name in wanted):
        raise UserError(
            "only pure Finch (RWKV-6) checkpoints tell their shape by themselves; "
            "give the reference's yaml or json with --config"
        )
    plan: tuple[TimeMixKind, ...] = ("finch",) * layers
    vocab_size, width = tensors["emb.weight"].shape
    first = {name: tensors[f"blocks.0.att.{name}"].shape for name in wanted}
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        time_mixes=plan,
        channel_width=tensors["blocks.0.ffn.key.weight"].shape[0],
        head_size=first["time_faaaa"][1],
        shift_rank=first["time_maa_w1"][1] // 5,
        decay_rank=first["time_decay_w1"][1],
    )
