"""A few tokens through a model's layers on a CPU, in C++ (cpu_decode.cpp).

Writing word by word reads every weight once a word. PyTorch does that in some hundred small operations, each of which
waits for the one before; here all layers below GOLD are one call. The modules in `goldfinch.mixers` are what it has to
agree with, and what runs where it cannot.
"""

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.cpu.build import compiled, pointer
from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.token_shift import DataDependentLerp
from goldfinch.mixers import Finch, FinchC2, Gold, KeyValueSource
from goldfinch.mixers.finch import Decay
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.model.token_cat import TokenCat
from goldfinch.state import BlockState, GoldState, RecurrentState

SOURCE = Path(__file__).with_name("cpu_decode.cpp")
NAME = "the layers for few tokens"
MAX_TOKENS = 16
"""Above, PyTorch's matrix products are faster."""
DTYPES = (torch.float32, torch.bfloat16)
# All that a model may consist of: whatever stands in for one of these computes something else.
KNOWN = {Decoder, Block, Finch, FinchC2, Gold, RwkvChannelMix, TokenCat, Decay, DataDependentLerp, LowRank}
KNOWN |= {nn.ModuleList, nn.Embedding, nn.Linear, nn.LayerNorm, nn.GroupNorm}
LANES = 16  # what all widths must be a multiple of
ROWS = 4  # what the rows of a matrix must be a multiple of


def fused_decoder(model: Decoder, count: int) -> "FusedDecoder | None":
    """What takes `count` tokens through this model; None where PyTorch has to: it is on another device, of another kind
    or type, or hooked into, gradients are wanted, there are too many tokens or there is no compiler.
    """
    if count > MAX_TOKENS or torch.is_grad_enabled() or model.device.type != "cpu":
        return None
    kept = _KEPT.get(model)
    if kept is None or not kept.holds():
        kept = _KEPT[model] = _Entry(model)
    return kept.layers


class FusedDecoder:
    """The layers of one model, as long as its parameters stay where they are. Batches are of one sequence."""

    def __init__(self, model: Decoder) -> None:
        code = compiled(SOURCE, NAME)
        assert code is not None
        dtype = model.dtype
        suffix = str(dtype).removeprefix("torch.")
        self._dtype = dtype
        self._code = {
            name: getattr(code, f"{name}_{suffix}")
            for name in ("recurrent_layers", "queries", "after_attention", "linear")
        }
        self._blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._below_gold = model.config.first_gold_layer
        self._layers = (_Layer * len(self._blocks))(*map(_layer, self._blocks))
        self._head = model.head.weight.detach()
        self._width, self._heads = model.config.width, model.config.num_heads

    def lower(self, x0: Tensor, states: Sequence[BlockState] | None) -> tuple[Tensor, list[BlockState]]:
        """`Decoder.lower`: (1, T, D) -> (1, T, D), and the states after it."""
        number, size = self._below_gold, self._width // self._heads
        after = [
            BlockState(time_mix=RecurrentState(last=last, wkv=wkv), channel_mix=channel)
            for last, channel, wkv in zip(
                *torch.empty(2, number, 1, self._width, dtype=self._dtype).unbind(),
                torch.empty(number, 1, self._heads, size, size),
                strict=True,
            )
        ]
        x = x0.to(torch.float32, copy=True).contiguous()
        given: Sequence[BlockState | None] = states or [None] * number
        before = [_fitting(state, self._dtype) for state in given]
        pointers = (_State * number)(*map(_state, before, after))
        self._call("recurrent_layers", self._layers, pointers, number, tensors=(x,))
        return x.to(self._dtype), after

    def upper(
        self, x: Tensor, states: Sequence[BlockState | None] | None, cache: KeyValueSource
    ) -> tuple[Tensor, list[BlockState]]:
        """`Decoder.upper`: the GOLD layers, (1, T, D) -> (1, T, D), and the states after them."""
        x, q = x.to(torch.float32, copy=True).contiguous(), torch.empty(x.shape)
        after = []
        for number, block in enumerate(self._blocks[self._below_gold :]):
            lasts = torch.empty(2, 1, self._width, dtype=self._dtype)
            state = BlockState(time_mix=GoldState(last=lasts[0]), channel_mix=lasts[1])
            before = _fitting(states[number] if states else None, self._dtype)
            pointers = _state(before, state)
            layer = ctypes.byref(self._layers, ctypes.sizeof(_Layer) * (self._below_gold + number))
            self._call("queries", layer, ctypes.byref(pointers), tensors=(x, q))
            gold = block.time_mix
            assert isinstance(gold, Gold)
            y = gold.attend(q.to(self._dtype), cache).float().contiguous()
            self._call("after_attention", layer, ctypes.byref(pointers), tensors=(x, y))
            after.append(state)
        return x.to(self._dtype), after

    def head(self, x: Tensor) -> Tensor:
        """`Decoder.head`: (T, D) -> (T, V) fp32."""
        if len(self._head) % ROWS:
            return nn.functional.linear(x, self._head).float()
        x, logits = x.float().contiguous(), torch.empty(len(x), len(self._head))
        sizes = (ctypes.c_int64(extent) for extent in (*logits.T.shape, self._width))
        threads = ctypes.c_int(torch.get_num_threads())
        self._code["linear"](pointer(self._head), *sizes, threads, pointer(x), pointer(logits))
        return logits

    def _call(self, name: str, layers: Any, states: Any, *number: int, tensors: tuple[Tensor, ...]) -> None:
        sizes = (ctypes.c_int64(extent) for extent in (*number, tensors[0].shape[1], self._width))
        threads = ctypes.c_int(torch.get_num_threads())
        self._code[name](layers, states, *sizes, threads, *map(pointer, tensors))


class _Entry:
    """What was made of a model, and of which parts."""

    def __init__(self, model: Decoder) -> None:
        self._children = [
            (module._modules, name, child) for module in model.modules() for name, child in module._modules.items()
        ]
        named = [(module._parameters, name) for module in model.modules() for name in module._parameters]
        self._parameters = [(owner, name, owner[name]) for owner, name in named]
        self._hooks = [module._forward_hooks for module in model.modules()]
        self._hooks += [module._forward_pre_hooks for module in model.modules()]
        # So that no cache is freed, and used for something else, behind the pointers.
        self._tensors = [parameter.detach() for _, _, parameter in self._parameters if parameter is not None]
        self._addresses = self._current_addresses()
        self._hooked = any(self._hooks)
        self.layers = FusedDecoder(model) if _possible(model) and not self._hooked else None

    def _current_addresses(self) -> list[int]:
        return [parameter.data_ptr() for _, _, parameter in self._parameters if parameter is not None]

    def holds(self) -> bool:
        """Whether all is where it was: weights may change, but neither they nor modules be exchanged or hooked into."""
        return (
            all(children.get(name) is child for children, name, child in self._children)
            and all(owner.get(name) is parameter for owner, name, parameter in self._parameters)
            and self._current_addresses() == self._addresses
            and any(self._hooks) == self._hooked
        )


_KEPT: weakref.WeakKeyDictionary[Decoder, _Entry] = weakref.WeakKeyDictionary()


def _possible(model: Decoder) -> bool:
    config = model.config
    widths = (config.width, config.head_size, config.channel_mix_width)
    ranks = (config.shift_rank, config.decay_rank, config.value_rank)
    parameters = list(model.parameters())
    return (
        not any(size % LANES for size in (*widths, *ranks))
        and all(type(module) in KNOWN for module in model.modules())
        and parameters[0].dtype in DTYPES
        and all(parameter.dtype == parameters[0].dtype and parameter.is_contiguous() for parameter in parameters)
        and compiled(SOURCE, NAME) is not None
    )


# The structures of cpu_decode.cpp.
def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_P, _S = ctypes.c_void_p, ctypes.c_int64
_Norm = _structure("_Norm", weight=_P, bias=_P, groups=_S, eps=ctypes.c_double)
_LowRank = _structure("_LowRank", a=_P, b=_P, rank=_S, outputs=_S)
_Shift = _structure("_Shift", mu_x=_P, mu=_P, low_rank=_LowRank)
_Layer = _structure(
    "_Layer",
    norm=_Norm,
    shift=_Shift,
    **dict.fromkeys(("use_r", "use_k", "use_v", "use_w", "use_extra"), _S),
    **dict.fromkeys(("receptance", "key", "value", "gate", "decay_base"), _P),
    decay=_LowRank,
    second_value=_LowRank,
    bonus=_P,
    one_minus_w=_S,
    heads=_S,
    query_norm=_Norm,
    output_norm=_Norm,
    output=_P,
    channel_norm=_Norm,
    **dict.fromkeys(("channel_mu_r", "channel_mu_k", "channel_receptance", "channel_key", "channel_value"), _P),
    channel_width=_S,
)
_State = _structure(
    "_State", **dict.fromkeys(("last", "channel_last", "wkv", "last_after", "channel_last_after", "wkv_after"), _P)
)


def _norm(norm: nn.LayerNorm | nn.GroupNorm) -> ctypes.Structure:
    groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
    return _Norm(weight=pointer(norm.weight), bias=pointer(norm.bias), groups=groups, eps=norm.eps)


def _low_rank(low_rank: LowRank) -> ctypes.Structure:
    outputs, rank, _ = low_rank.b.shape
    return _LowRank(a=pointer(low_rank.a), b=pointer(low_rank.b), rank=rank, outputs=outputs)


def _shift(ddlerp: DataDependentLerp) -> ctypes.Structure:
    return _Shift(mu_x=pointer(ddlerp.mu_x), mu=pointer(ddlerp.mu), low_rank=_low_rank(ddlerp.low_rank))


def _layer(block: Block) -> ctypes.Structure:
    mixer, channel_mix = block.time_mix, block.channel_mix
    assert isinstance(channel_mix, RwkvChannelMix)
    assert isinstance(mixer, Finch | FinchC2 | Gold)
    fields: dict[str, Any] = {
        "norm": _norm(block.time_mix_norm),
        "shift": _shift(mixer.ddlerp),
        "heads": mixer.num_heads,
        "output_norm": _norm(mixer.norm),
        "output": pointer(mixer.output.weight),
        "channel_norm": _norm(block.channel_mix_norm),
        "channel_mu_r": pointer(channel_mix.mu_r),
        "channel_mu_k": pointer(channel_mix.mu_k),
        "channel_receptance": pointer(channel_mix.receptance.weight),
        "channel_key": pointer(channel_mix.key.weight),
        "channel_value": pointer(channel_mix.value.weight),
        "channel_width": channel_mix.key.weight.shape[0],
    }
    if isinstance(mixer, Gold):
        fields |= {"receptance": pointer(mixer.query.weight), "query_norm": _norm(mixer.query_norm)}
        return _Layer(**fields)
    fields |= {f"use_{use}": number for number, use in enumerate(mixer.ddlerp.uses) if use in "rkvw"}
    fields |= {
        "receptance": pointer(mixer.receptance.weight),
        "key": pointer(mixer.key.weight),
        "value": pointer(mixer.value.weight),
        "decay_base": pointer(mixer.decay.base),
        "decay": _low_rank(mixer.decay.low_rank),
        "bonus": pointer(mixer.bonus),
    }
    if isinstance(mixer, Finch):
        fields |= {"gate": pointer(mixer.gate.weight), "use_extra": mixer.ddlerp.uses.index("g")}
    else:
        fields["one_minus_w"] = mixer.one_minus_w
        if mixer.bonus is None:
            fields |= {"second_value": _low_rank(mixer.second_value), "use_extra": mixer.ddlerp.uses.index("v2")}
    return _Layer(**fields)


def _fitting(state: BlockState | None, dtype: torch.dtype) -> BlockState | None:
    """The state as C++ reads it, hardly ever another one: whoever made it may have computed in another type."""
    if state is None:
        return None

    def fit(tensor: Tensor, type_: torch.dtype = dtype) -> Tensor:
        return tensor.to(type_).contiguous()

    mix, channel_mix = state.time_mix, state.channel_mix
    assert isinstance(mix, RecurrentState | GoldState)
    last = fit(mix.last)
    after: RecurrentState | GoldState = GoldState(last=last)
    if isinstance(mix, RecurrentState):
        after = RecurrentState(last=last, wkv=fit(mix.wkv, torch.float32))
    return BlockState(time_mix=after, channel_mix=None if channel_mix is None else fit(channel_mix))


def _state(before: BlockState | None, after: BlockState) -> ctypes.Structure:
    tensors: dict[str, Tensor | None] = {}
    for state, ending in ((before, ""), (after, "_after")):
        if state is not None:
            assert isinstance(state.time_mix, RecurrentState | GoldState)
            tensors |= {f"last{ending}": state.time_mix.last, f"channel_last{ending}": state.channel_mix}
            if isinstance(state.time_mix, RecurrentState):
                tensors[f"wkv{ending}"] = state.time_mix.wkv
    return _State(**{name: pointer(tensor) for name, tensor in tensors.items()})
