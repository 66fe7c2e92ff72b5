"""The base class of time mixes, with the facts about a mixer that the rest of the package needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from goldfinch.config import TIME_MIX_KINDS, ModelConfig
from goldfinch.layers.low_rank import LowRank


class TimeMix(nn.Module):
    """The first half of a layer: forward(x, state, *, document_starts) -> (y, state). GOLD takes a key cache as well.

    x and y are (B, T, D); a state of None is the start of a text. document_starts: (B, T) bool, the tokens that begin a
    document: nothing from an earlier document reaches them; None for one document.

    A new one is registered under a name (`register_time_mix`); training, saving, opening and counting then work.
    """

    state_type: ClassVar[type]
    """Dataclass of its state, with `GROWS` and `FP32_FIELDS` (see `goldfinch.state`)."""
    is_recurrent: ClassVar[bool] = False
    """Whether it reads a text in linear time, with a state of fixed size."""
    rotates: ClassVar[bool] = False
    """Whether its state holds rotated keys."""
    attends: ClassVar[bool] = False
    """Whether each token attends to all tokens before it."""
    parameter_roles: ClassVar[Mapping[str, str]] = {}
    """Name of each parameter of its own -> "vector" (mixing vectors and the like), "matrix" or "decay"."""

    @classmethod
    def state_shapes(cls, config: ModelConfig, num_tokens: int) -> dict[str, tuple[int, ...] | None]:
        """Field of the state -> shape after `num_tokens` tokens, without the batch; None for fields that are None."""
        raise NotImplementedError

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Initialise its own parameters, and those of submodules that depend on their role in it (SPEC 7)."""
        raise NotImplementedError

    def extra_flops(self) -> int:
        """FLOPs per token on top of one product with each weight, without attention."""
        return 0

    def recurrence_flops(self) -> int:
        """The part of `extra_flops` that is the recurrence."""
        return 0

    def expansion_flops(self) -> int:
        """FLOPs per token that are repeated for every token whose keys and values are rebuilt."""
        return 0


@dataclasses.dataclass(frozen=True)
class RegisteredTimeMix:
    """A kind of time mix that layer plans can name."""

    cls: type[TimeMix]
    options: Mapping[str, Any]
    """Arguments of the class, besides the config."""

    def build(self, config: ModelConfig) -> TimeMix:
        """Make the module of one layer."""
        return self.cls(config, **self.options)

    @property
    def rotates(self) -> bool:
        """As `TimeMix.rotates`."""
        return self.cls.rotates

    @property
    def is_recurrent(self) -> bool:
        """As `TimeMix.is_recurrent`."""
        return self.cls.is_recurrent

    def state(self, config: ModelConfig, num_tokens: int) -> tuple[type, dict[str, tuple[int, ...] | None]]:
        """The type of its state, and the shapes of the fields after `num_tokens` tokens."""
        return self.cls.state_type, self.cls.state_shapes(config, num_tokens)


TIME_MIXES: dict[str, RegisteredTimeMix] = {}
"""Every kind of time mix, by the name that layer plans use."""


def register_time_mix(name: str, cls: type[TimeMix], **options: Any) -> None:
    """Let layer plans use a time mix.

    Args:
        name: in `ModelConfig.time_mixes`.
        cls: its class.
        **options: arguments of the class, besides the config.
    """
    TIME_MIXES[name] = RegisteredTimeMix(cls, options)
    if name not in TIME_MIX_KINDS:
        TIME_MIX_KINDS.append(name)


def product_flops(module: nn.Module) -> int:
    """FLOPs per token of all matrices in a module, each used once; a multiply-add is 2."""
    parts = (part for part in module.modules() if isinstance(part, (nn.Linear, LowRank)))
    return 2 * sum(parameter.numel() for part in parts for parameter in part.parameters())
