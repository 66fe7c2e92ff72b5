"""Config files of the reference implementation (YAML or JSON) -> `ModelConfig`."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from goldfinch.argument_checks import shortened
from goldfinch.checkpoint.config_json import MODEL_TYPE, from_json
from goldfinch.config import MAX_LAYERS, ChannelMixKind, ModelConfig, RopeConfig
from goldfinch.errors import UserError
from goldfinch.json_yaml import read_json, read_yaml
from goldfinch.presets import WORLD_VOCABULARY, split_plan
from goldfinch.settings import did_you_mean, from_plain, merge

_TIME_MIXES: dict[str, str] = {
    "x060": "finch",
    "x060c2": "finch_c2",
    "gptalpha": "gptalpha",
    "gold": "gold",
    "llama": "llama",
}
_CHANNEL_MIXES: dict[str, ChannelMixKind] = {"x060": "rwkv", "rwkv": "rwkv", "llama": "swiglu"}
_NEEDED = ("tmix", "n_layer", "n_embd")
_OPTIONAL = (
    "tmix2",
    "inv_other_layer_ratio",
    "use_v2",
    "use_one_minus_w",
    "cmix",
    "dim_ffn",
    "dim_att",
    "head_size",
    "vocab_size",
    "kv_cache_compression_ratio",
    "rope",
)


def read_reference_config(paths: list[Path]) -> dict[str, Any]:
    """Merge the files' `model:` sections (or the files, where they have none), later ones over earlier ones.

    Sections inside them, such as `rope`, are merged key by key.

    Raises:
        UserError: a file that cannot be read, or that holds no settings.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, _read_section(path))
    return merged


def _read_section(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    section = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} must hold a mapping of model settings, or a `model:` section with one")
    return {str(key): value for key, value in section.items()}


def describes_model(content: object) -> bool:
    """Whether the content of a file describes a model, in the reference's keys or as our own config.json."""
    section = content.get("model", content) if isinstance(content, dict) else None
    return isinstance(section, dict) and not section.keys().isdisjoint(("tmix", "time_mixes"))


def described_config(content: Mapping[str, Any]) -> ModelConfig:
    """The config that such content describes, with or without a `model:` section.

    Raises:
        UserError: as `model_config_from_reference` or `ModelConfig.from_dict`.
    """
    values = content.get("model", content)
    if values.get("model_type") == MODEL_TYPE:
        return from_json(values)
    return ModelConfig.from_dict(values) if "time_mixes" in values else model_config_from_reference(values)


def ignored_keys(values: Mapping[str, Any]) -> list[str]:
    """The keys that `model_config_from_reference` ignores: dropout, context length, misspelt ones; none in our own."""
    if "time_mixes" in values:
        return []
    return sorted(values.keys() - {*_NEEDED, *_OPTIONAL})


def model_config_from_reference(values: Mapping[str, Any]) -> ModelConfig:
    """The reference's keys -> our config. Other keys are ignored (`ignored_keys`), None is the key's default.

    Raises:
        UserError: a key that is needed is missing, or a value is of the wrong type or names nothing known.
    """
    for key in _NEEDED:
        if values.get(key) is None:
            raise UserError(f"the reference config lacks {key!r}; give the file that has it with another --config")
    width = _count(values, "n_embd")
    if values.get("dim_att") not in (None, 0, width):
        raise UserError(
            f"dim_att {shortened(values['dim_att'])} must equal n_embd {width}, as in every published model"
        )
    layers = _count(values, "n_layer")
    if layers > MAX_LAYERS:
        raise UserError(f"n_layer in the reference config must be at most {MAX_LAYERS:,}, not {shortened(layers)}")
    lower = _time_mix(values, "tmix")
    upper = _time_mix(values, "tmix2") if values.get("tmix2") else lower
    default_channel_mix = "llama" if lower == "llama" else "x060"
    channel_mix = _CHANNEL_MIXES[_known(_CHANNEL_MIXES, "cmix", values.get("cmix") or default_channel_mix)]
    # The reference's SwiGLU does not look at dim_ffn. 0 is the published width, here as there.
    own_width = channel_mix == "rwkv" and values.get("dim_ffn") not in (None, 0)
    return ModelConfig(
        vocab_size=_count(values, "vocab_size", WORLD_VOCABULARY),
        width=width,
        time_mixes=split_plan(lower, upper, layers, _count(values, "inv_other_layer_ratio", 3)),
        channel_mix=channel_mix,
        channel_width=_count(values, "dim_ffn") if own_width else 0,
        head_size=_count(values, "head_size", 64),
        latent_ratio=_count(values, "kv_cache_compression_ratio", 16),
        rope=_rope(values.get("rope")),
    )


def model_config_to_reference(config: ModelConfig) -> dict[str, Any]:
    """Our config -> the reference's keys, the inverse of `model_config_from_reference`.

    Raises:
        UserError: the reference cannot describe such a model.
    """
    lower, upper = config.time_mixes[0], config.time_mixes[-1]
    names = {kind: name for name, kind in _TIME_MIXES.items()}
    names |= {"finch_c2_no_v2": "x060c2", "finch_c2_no_one_minus_w": "x060c2"}
    values: dict[str, Any] = {"tmix": names.get(lower), "n_layer": config.num_layers, "n_embd": config.width}
    if upper != lower:
        # The smallest ratio that puts the border where it is.
        ratios = range(1, config.num_layers + 1)
        fits = [r for r in ratios if split_plan(lower, upper, config.num_layers, r) == config.time_mixes]
        values |= {"tmix2": names.get(upper), "inv_other_layer_ratio": fits[0] if fits else None}
    values |= {
        "use_v2": lower != "finch_c2_no_v2",
        "use_one_minus_w": lower != "finch_c2_no_one_minus_w",
        "cmix": "llama" if config.channel_mix == "swiglu" else "x060",
        "dim_ffn": config.channel_width,
        "head_size": config.head_size,
        "vocab_size": config.vocab_size,
        "kv_cache_compression_ratio": config.latent_ratio,
        "rope": None if config.rope is None else dataclasses.asdict(config.rope),
    }
    try:
        described = model_config_from_reference(values)
    except UserError:
        described = None
    if described != config:
        raise UserError("the reference implementation's config cannot describe this model")
    return values


def _time_mix(values: Mapping[str, Any], key: str) -> str:
    """`tmix` or `tmix2`, with the two switches that make Finch-C2 one of its ablations."""
    kind = _TIME_MIXES[_known(_TIME_MIXES, key, values[key])]
    use_v2, use_one_minus_w = _switch(values, "use_v2"), _switch(values, "use_one_minus_w")
    if kind != "finch_c2" or (use_v2 and use_one_minus_w):
        return kind
    if use_v2:
        return "finch_c2_no_one_minus_w"
    if use_one_minus_w:
        return "finch_c2_no_v2"
    raise UserError("use_v2 and use_one_minus_w are both off, but there is no such model in the paper or here")


def _rope(value: object) -> RopeConfig | None:
    if value is None or value is False:
        return None
    if value == {}:
        raise UserError("rope is empty in the reference config: give base, rescale or rebase, or null for no positions")
    return from_plain(RopeConfig, value, "rope.")


def _count(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if values.get(key) is None else values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} in the reference config must be a whole number above 0, not {shortened(value)}")
    return value


def _switch(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if value not in (None, 0, 1):
        raise UserError(f"{key} in the reference config must be true or false, not {shortened(value)}")
    return value is None or bool(value)


def _known(table: Mapping[str, object], key: str, value: object) -> str:
    if not isinstance(value, str) or value not in table:
        raise UserError(
            f"unknown {key} {shortened(value)} in the reference config; {did_you_mean(str(value), list(table))}"
        )
    return value


def infer_finch_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The config of a pure Finch (RWKV-6 World) checkpoint, from its shapes alone.

    Raises:
        UserError: a layer is not Finch, or a tensor that tells a size is missing or has other dimensions; then a
            config file must say what the model is.
    """
    kind: str = "finch"
    numbers = [re.match(r"blocks\.(\d{1,4})\.", name) for name in tensors]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    # `gate` distinguishes Finch from Finch-C2, the other two from GPTAlpha, GOLD and Llama.
    marks = [f"blocks.{i}.att.{name}" for i in range(layers) for name in ("gate.weight", "time_decay", "time_faaaa")]
    sizes = ["emb.weight", "blocks.0.ffn.key.weight"]
    sizes += [f"blocks.0.att.{name}" for name in ("time_maa_w1", "time_decay_w1", "time_faaaa")]
    lacking = [name for name in marks + sizes if name not in tensors]
    shapes = [tuple(tensors[name].shape) for name in sizes if name in tensors]
    if not lacking:
        match shapes:
            case [(vocab_size, width), (channel_width, _), (_, shift_ranks), (_, decay_rank), (_, head_size)]:
                return ModelConfig(
                    vocab_size=vocab_size,
                    width=width,
                    time_mixes=(kind,) * layers,
                    channel_width=channel_width,
                    head_size=head_size,
                    shift_rank=shift_ranks // 5,
                    decay_rank=decay_rank,
                )
    why = f"it lacks {lacking[0]}" if lacking else f"{', '.join(sizes)} are {', '.join(map(str, shapes))}"
    raise UserError(
        f"the config can be inferred only for a pure Finch (RWKV-6) checkpoint, and {why}; "
        "give the reference's YAML or JSON to `goldfinch convert` with --config"
    )
