"""The structures of layers.h and gold_layers.h, filled with a model's weights."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.cpu.pointers import pointer
from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.quantized import MatrixModule, QuantizedEmbedding, QuantizedLinear
from goldfinch.layers.token_shift import DataDependentLerp
from goldfinch.mixers import Finch, FinchC2, Gold
from goldfinch.model import Decoder
from goldfinch.model.block import Block


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_P, _S = ctypes.c_void_p, ctypes.c_int64
_Norm = _structure("_Norm", weight=_P, bias=_P, groups=_S, eps=ctypes.c_double)
_LowRank = _structure("_LowRank", a=_P, b=_P, rank=_S, outputs=_S)
MatrixStructure = _structure("MatrixStructure", numbers=_P, codes=_P, scales=_P)
_Shift = _structure("_Shift", mu_x=_P, mu=_P, low_rank=_LowRank)
_Expansion = _structure(
    "_Expansion",
    **dict.fromkeys(("mu_e", "mu_k", "mu_v"), _P),
    **dict.fromkeys(("shift", "key_adapter", "value_adapter"), _LowRank),
    **dict.fromkeys(("key_norm", "value_norm"), _Norm),
)
LayerStructure = _structure(
    "LayerStructure",
    norm=_Norm,
    shift=_Shift,
    **dict.fromkeys(("use_r", "use_k", "use_v", "use_w", "use_extra"), _S),
    **dict.fromkeys(("receptance", "key", "value", "gate"), MatrixStructure),
    decay_base=_P,
    decay=_LowRank,
    second_value=_LowRank,
    bonus=_P,
    one_minus_w=_S,
    heads=_S,
    query_norm=_Norm,
    expansion=_Expansion,
    output_norm=_Norm,
    output=MatrixStructure,
    channel_norm=_Norm,
    **dict.fromkeys(("channel_mu_r", "channel_mu_k"), _P),
    **dict.fromkeys(("channel_receptance", "channel_key", "channel_value"), MatrixStructure),
    channel_width=_S,
)
OutsideStructure = _structure(
    "OutsideStructure",
    embedding=MatrixStructure,
    vocab_size=_S,
    embedding_norm=_Norm,
    down=_P,
    up=_P,
    latent_width=_S,
    velocity=_P,
    output_norm=_Norm,
)
"""What is not in a layer."""
StateStructure = _structure(
    "StateStructure",
    **dict.fromkeys(("last", "channel_last", "wkv", "last_after", "channel_last_after", "wkv_after"), _P),
)
"""Six pointers: `FusedDecoder._pointers` fills arrays of them."""


KeptStructure = _structure("KeptStructure", keys=_P, values=_P, block_size=_S, length=_S)
"""Keys and values of one layer and one sequence: two arrays of addresses of blocks."""


def matrix(module: MatrixModule, rows: int, columns: int, dtype: torch.dtype) -> ctypes.Structure:
    """A `MatrixStructure`: the weight of a linear layer or embedding, (rows, columns), quantized or of a dtype."""
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        codes = pointer(module.weight, (rows, columns), torch.int8)
        return MatrixStructure(codes=codes, scales=pointer(module.scale, (rows,), torch.float32))
    return MatrixStructure(numbers=pointer(module.weight, (rows, columns), dtype))


class WeightStructures:
    """Structures with the weights of one model, each checked to be what C++ reads."""

    def __init__(self, model: Decoder) -> None:
        config = model.config
        self.dtype = model.dtype
        self.width, self.num_heads = config.width, config.num_heads
        self.channel_width = config.channel_mix_width

    def outside(self, model: Decoder, velocity: Tensor | None) -> ctypes.Structure:
        """An `OutsideStructure`, valid as long as the weights and `velocity`, (N / 2,) fp32, stay where they are."""
        config, token_cat = model.config, model.token_cat
        fields: dict[str, Any] = {
            "embedding": matrix(model.embedding, config.vocab_size, self.width, self.dtype),
            "vocab_size": config.vocab_size,
            "embedding_norm": self._norm(model.embedding_norm),
            "velocity": pointer(velocity, (config.head_size // 2,), torch.float32),
            "output_norm": self._norm(model.output_norm),
        }
        if token_cat is not None:
            latent_width = config.latent_width
            fields |= {
                "down": self._weight(token_cat.down.weight, latent_width, self.width),
                "up": self._weight(token_cat.up.weight, self.width, self.width + latent_width),
                "latent_width": latent_width,
            }
        return OutsideStructure(**fields)

    def layer(self, block: Block) -> ctypes.Structure:
        """A `LayerStructure`, valid as long as the weights stay where they are in memory.

        Raises:
            TypeError: the layer is of a kind that C++ does not compute.
            ValueError: a weight has another shape, dtype or device than C++ reads.
        """
        mixer, channel_mix = block.time_mix, block.channel_mix
        if not isinstance(mixer, Finch | FinchC2 | Gold) or not isinstance(channel_mix, RwkvChannelMix):
            raise TypeError(f"{type(mixer).__name__} with {type(channel_mix).__name__} is not implemented in C++")
        fields: dict[str, Any] = {
            "norm": self._norm(block.time_mix_norm),
            "shift": self._shift(mixer.ddlerp),
            "heads": mixer.num_heads,
            "output_norm": self._norm(mixer.norm),
            "output": self._square(mixer.output),
            "channel_norm": self._norm(block.channel_mix_norm),
            "channel_mu_r": self._vector(channel_mix.mu_r),
            "channel_mu_k": self._vector(channel_mix.mu_k),
            "channel_receptance": self._square(channel_mix.receptance),
            "channel_key": matrix(channel_mix.key, self.channel_width, self.width, self.dtype),
            "channel_value": matrix(channel_mix.value, self.width, self.channel_width, self.dtype),
            "channel_width": self.channel_width,
        }
        if isinstance(mixer, Gold):
            fields |= {"receptance": self._square(mixer.query), "query_norm": self._norm(mixer.query_norm)}
            return LayerStructure(**fields, expansion=self._expansion(mixer))
        fields |= {f"use_{use}": number for number, use in enumerate(mixer.ddlerp.uses) if use in "rkvw"}
        fields |= {
            "receptance": self._square(mixer.receptance),
            "key": self._square(mixer.key),
            "value": self._square(mixer.value),
            "decay_base": self._vector(mixer.decay.base),
            "decay": self._low_rank(mixer.decay.low_rank, 1),
            "bonus": self._weight(mixer.bonus, self.num_heads, self.width // self.num_heads),
        }
        if isinstance(mixer, Finch):
            fields |= {"gate": self._square(mixer.gate), "use_extra": mixer.ddlerp.uses.index("g")}
        else:
            fields["one_minus_w"] = mixer.one_minus_w
            if mixer.bonus is None:
                fields |= {
                    "second_value": self._low_rank(mixer.second_value, 1),
                    "use_extra": mixer.ddlerp.uses.index("v2"),
                }
        return LayerStructure(**fields)

    def _weight(self, tensor: Tensor | None, *shape: int) -> ctypes.c_void_p:
        """The address of a weight; null for None."""
        return pointer(tensor, shape, self.dtype)

    def _vector(self, tensor: Tensor) -> ctypes.c_void_p:
        """The address of (D,) numbers."""
        return self._weight(tensor, self.width)

    def _square(self, linear: MatrixModule) -> ctypes.Structure:
        """A (D, D) matrix."""
        return matrix(linear, self.width, self.width, self.dtype)

    def _norm(self, norm: nn.LayerNorm | nn.GroupNorm) -> ctypes.Structure:
        groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        return _Norm(weight=self._vector(norm.weight), bias=self._vector(norm.bias), groups=groups, eps=norm.eps)

    def _low_rank(self, low_rank: LowRank, outputs: int) -> ctypes.Structure:
        rank = low_rank.b.shape[1]
        return _LowRank(
            a=self._weight(low_rank.a, self.width, outputs * rank),
            b=self._weight(low_rank.b, outputs, rank, self.width),
            rank=rank,
            outputs=outputs,
        )

    def _expansion(self, gold: Gold) -> ctypes.Structure:
        return _Expansion(
            mu_e=self._vector(gold.mu_e),
            mu_k=self._vector(gold.mu_k),
            mu_v=self._vector(gold.mu_v),
            shift=self._low_rank(gold.shift_low_rank, 2),
            key_adapter=self._low_rank(gold.key_adapter, 1),
            value_adapter=self._low_rank(gold.value_adapter, 1),
            key_norm=self._norm(gold.key_norm),
            value_norm=self._norm(gold.value_norm),
        )

    def _shift(self, ddlerp: DataDependentLerp) -> ctypes.Structure:
        uses = len(ddlerp.uses)
        return _Shift(
            mu_x=self._vector(ddlerp.mu_x),
            mu=self._weight(ddlerp.mu, uses, self.width),
            low_rank=self._low_rank(ddlerp.low_rank, uses),
        )
