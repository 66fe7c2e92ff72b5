"""The model config: sizes and the layer plan, as plain frozen data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from goldfinch.argument_checks import shortened
from goldfinch.errors import UserError
from goldfinch.settings import convert_fields, did_you_mean, from_plain

TIME_MIX_KINDS = ["finch", "finch_c2", "finch_c2_no_one_minus_w", "finch_c2_no_v2", "gold", "gptalpha", "llama"]
"""Names of time mixes for layer plans; `goldfinch.mixers.register_time_mix` adds others."""
MAX_SIZE, MAX_LAYERS = 1 << 24, 1024
"""Far beyond any model: larger numbers come from damaged files, and building such a model would take all memory."""
ChannelMixKind = Literal["rwkv", "swiglu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions on queries and keys; `rescale` and `rebase` interpolate to contexts longer than trained on."""

    base: float = 10000.0
    """Wavelength base."""
    rescale: float = 1.0
    """Divides the angular velocity (position interpolation)."""
    rebase: float = 1.0
    """Multiplies the base (NTK-style interpolation)."""

    def __post_init__(self) -> None:
        convert_fields(self, "rope.")
        for field in dataclasses.fields(self):
            if not 0 < getattr(self, field.name) < math.inf:
                raise UserError(f"rope.{field.name} must be above 0 and finite, not {getattr(self, field.name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one model. `time_mixes` is the layer plan, from bottom to top."""

    vocab_size: int
    """V, number of token ids."""
    width: int
    """D, channels of the residual stream; a multiple of `head_size`."""
    time_mixes: tuple[str, ...]
    """The time mix of every layer; GOLD layers, if any, are the last ones."""
    channel_mix: ChannelMixKind = "rwkv"
    """The channel mix of every layer."""
    channel_width: int = 0
    """Width inside the channel mix; 0 for the published ratio (3.5 D, SwiGLU 8/3 D, rounded down to 32)."""
    head_size: int = 64
    """N, channels per head."""
    latent_ratio: int = 16
    """D / R: width of the model divided by the width of a latent."""
    shift_rank: int = 32
    """Rank of the low-rank parts of token shifts."""
    decay_rank: int = 64
    """Rank of the low-rank part of the decay."""
    value_rank: int = 64
    """Rank of Finch-C2's second value."""
    rope: RopeConfig | None = None
    """Rotary positions in every attention layer; None for no positions."""

    def __post_init__(self) -> None:
        convert_fields(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < (field.name != "channel_width"):
                raise UserError(f"{field.name} must be above 0, not {value}")
            if isinstance(value, int) and value > MAX_SIZE:
                raise UserError(f"{field.name} must be at most {MAX_SIZE:,}, not {shortened(value)}")
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise UserError(f"time_mixes must name 1 to {MAX_LAYERS:,} layers, not {self.num_layers:,}")
        for kind in self.time_mixes:
            if kind not in TIME_MIX_KINDS:
                raise UserError(f"unknown time mix {shortened(kind)}; {did_you_mean(kind, TIME_MIX_KINDS)}")
        if self.channel_mix not in get_args(ChannelMixKind):
            raise UserError(f"unknown channel mix {self.channel_mix!r}; known: {', '.join(get_args(ChannelMixKind))}")
        if self.width % self.head_size:
            raise UserError(f"width {self.width} must be a multiple of head_size {self.head_size}")
        if self.head_size % 2 and self.rope is not None:
            raise UserError(f"rope turns channels in pairs: head_size {self.head_size} must be even")
        if "gold" in self.time_mixes[: self.first_gold_layer]:
            raise UserError("GOLD layers must be the last layers of the plan: they all read one key cache")
        if self.num_gold_layers and self.width % self.latent_ratio:
            raise UserError(f"width {self.width} must be a multiple of latent_ratio {self.latent_ratio}")

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return len(self.time_mixes)

    @property
    def num_heads(self) -> int:
        """H, heads per layer."""
        return self.width // self.head_size

    @property
    def channel_mix_width(self) -> int:
        """F, the width inside the channel mix."""
        ratio = 3.5 if self.channel_mix == "rwkv" else 8 / 3
        return self.channel_width or int(ratio * self.width / 32) * 32

    @property
    def num_gold_layers(self) -> int:
        """G, the number of GOLD layers on top."""
        return self.num_layers - self.first_gold_layer

    @property
    def first_gold_layer(self) -> int:
        """Index of the first of the GOLD layers at the top; `num_layers` if there are none."""
        index = self.num_layers
        while index and self.time_mixes[index - 1] == "gold":
            index -= 1
        return index

    @property
    def latent_width(self) -> int:
        """R, numbers in one compressed key."""
        return self.width // self.latent_ratio

    @property
    def adapter_rank(self) -> int:
        """Rank of GOLD's loradapt of keys and of values: max(D // 16, 64), whatever the latent ratio."""
        return max(self.width // 16, 64)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self) | {"time_mixes": list(self.time_mixes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build from plain JSON types; see `from_plain` for what is refused."""
        return from_plain(cls, values)
