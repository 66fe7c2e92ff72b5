"""Every model of the paper by name, KIND-SIZE, and small sizes for a CPU."""

import re
from collections.abc import Callable

from goldfinch.config import ChannelMixKind, ModelConfig, RopeConfig
from goldfinch.errors import UserError
from goldfinch.settings import nearest

WORLD_VOCABULARY = 65536
# name -> (layers, width). The first two are the paper's; L80-D8192 is its projection, never trained.
SIZES = {
    "L12-D768": (12, 768),
    "L24-D2048": (24, 2048),
    "L80-D8192": (80, 8192),
    "L3-D128": (3, 128),
    "L6-D192": (6, 192),
    "L6-D256": (6, 256),
    "L6-D384": (6, 384),
    "L12-D512": (12, 512),
}


def split_plan(lower: str, upper: str, layers: int, inverse_fraction: int) -> tuple[str, ...]:
    """The layer plan with the last 1/inverse_fraction of the layers `upper`, the rest `lower` (SPEC 1).

    The first upper layer is int(layers * (inverse_fraction - 1) / inverse_fraction), as in the reference.
    """
    first = layers * (inverse_fraction - 1) // inverse_fraction
    plan: list[str] = [lower] * first + [upper] * (layers - first)
    return tuple(plan)


def _goldfinch(inverse_fraction: int = 3, latent_ratio: int = 16, rope: RopeConfig | None = None) -> "_Kind":
    return lambda layers, width, vocab_size: ModelConfig(
        vocab_size=vocab_size,
        width=width,
        time_mixes=split_plan("finch_c2", "gold", layers, inverse_fraction),
        latent_ratio=latent_ratio,
        rope=rope,
    )


def _uniform(kind: str, rope: RopeConfig | None = None, channel_mix: ChannelMixKind = "rwkv") -> "_Kind":
    return lambda layers, width, vocab_size: ModelConfig(
        vocab_size=vocab_size, width=width, time_mixes=(kind,) * layers, channel_mix=channel_mix, rope=rope
    )


def _finch_c2_gptalpha(layers: int, width: int, vocab_size: int) -> ModelConfig:
    plan = split_plan("finch_c2", "gptalpha", layers, 3)
    return ModelConfig(vocab_size=vocab_size, width=width, time_mixes=plan)


_Kind = Callable[[int, int, int], ModelConfig]
KINDS: dict[str, _Kind] = {
    "goldfinch": _goldfinch(),
    "goldfinch_half": _goldfinch(inverse_fraction=2),
    "goldfinch_sixth": _goldfinch(inverse_fraction=6),
    "goldfinch_rope": _goldfinch(rope=RopeConfig()),
    "goldfinch_uncompressed": _goldfinch(latent_ratio=1),
    "finch": _uniform("finch"),
    "finch_c2": _uniform("finch_c2"),
    "finch_c2_no_one_minus_w": _uniform("finch_c2_no_one_minus_w"),
    "finch_c2_no_v2": _uniform("finch_c2_no_v2"),
    "finch_c2_gptalpha": _finch_c2_gptalpha,
    "gptalpha": _uniform("gptalpha", rope=RopeConfig()),
    "llama": _uniform("llama", rope=RopeConfig(), channel_mix="swiglu"),
}


def model_config(preset: str, vocab_size: int = WORLD_VOCABULARY) -> ModelConfig:
    """The model that a preset name stands for, such as "goldfinch-L12-D768".

    KIND is one of `KINDS`, SIZE one of `SIZES` or any other L<layers>-D<width>.

    Raises:
        UserError: an unknown kind, or a size that is not written L<layers>-D<width>.
    """
    kind, _, size = preset.partition("-")
    if kind not in KINDS:
        near = nearest(kind, list(KINDS))
        hint = "a preset is KIND-SIZE, such as goldfinch-L6-D256; `goldfinch info` lists all"
        raise UserError(f"unknown preset {preset!r}: " + (f"did you mean {near}-{size or 'SIZE'}?" if near else hint))
    written = re.fullmatch(r"L([1-9]\d{0,3})-D([1-9]\d{0,5})", size)
    if written is None:
        raise UserError(f"unknown size in preset {preset!r}; known: {', '.join(SIZES)}, or any L<layers>-D<width>")
    return KINDS[kind](int(written[1]), int(written[2]), vocab_size)


def preset_names() -> list[str]:
    """All KIND-SIZE names of the tables."""
    return [f"{kind}-{size}" for kind in KINDS for size in SIZES]
