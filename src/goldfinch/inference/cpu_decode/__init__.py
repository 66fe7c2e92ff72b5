"""A few tokens of one or several sequences through a model's layers on a CPU, in C++ (cpu_decode.cpp).

Decoding reads every weight once per step. PyTorch does that in some hundred small operations, each of which waits for
the one before; here the layers below GOLD are one call, and the GOLD layers another. The modules in `goldfinch.mixers`
define what is computed, and run wherever C++ cannot.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from operator import eq, is_
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.checkpoint.quantize import weight_kind
from goldfinch.config import ModelConfig
from goldfinch.cpu.autotune import Kernel, Work, is_faster
from goldfinch.cpu.build import float_lanes
from goldfinch.devices import dtype_name
from goldfinch.inference.cpu_decode.decoder import NAME, SOURCE, FusedDecoder, library, linear
from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.quantized import QuantizedEmbedding, QuantizedLinear
from goldfinch.layers.token_shift import DataDependentLerp
from goldfinch.mixers import Finch, FinchC2, Gold
from goldfinch.mixers.finch import Decay
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.model.token_cat import TokenCat

MAX_TOKENS = 16
"""Tokens of all sequences together; with more, PyTorch's matrix products are usually faster."""
MAX_TOKENS_IF_FASTER = 32
"""The same where PyTorch is slow at products of a few rows, as in fp32 on some processors."""
DTYPES = (torch.float32, torch.bfloat16)
# A model is run in C++ only if it consists of exactly these: a subclass may compute something else. One that does not
# is added by whoever defines it.
KNOWN = {Decoder, Block, Finch, FinchC2, Gold, RwkvChannelMix, TokenCat, Decay, DataDependentLerp, LowRank}
KNOWN |= {QuantizedEmbedding, QuantizedLinear}
KNOWN |= {nn.ModuleList, nn.Embedding, nn.Linear, nn.LayerNorm, nn.GroupNorm}


def fused_decoder(model: Decoder, num_tokens: int) -> "FusedDecoder | None":
    """The C++ layers of a model, for `num_tokens` tokens; None where PyTorch must run them.

    That is on other devices, for other layer kinds or dtypes, with hooks or replaced modules, when gradients are
    enabled, for too many tokens, inside torch.compile, and without a compiler.
    """
    if num_tokens > MAX_TOKENS_IF_FASTER or torch.is_grad_enabled() or model.device.type != "cpu":
        return None
    if torch.compiler.is_compiling():
        return None
    checked, entry = getattr(_CHECKED, "last", (None, None))
    if entry is None or checked is not model:
        entry = _current_entry(model)
    if entry.decoder is None or (num_tokens > MAX_TOKENS and not _is_faster(model, PRODUCTS)):
        return None
    return entry.decoder


def _is_faster(model: Decoder, kernels: Mapping[torch.dtype, Kernel]) -> bool:
    """Whether C++ is; always where matrices are codes, which PyTorch would turn into numbers at each step."""
    return weight_kind(model) is not None or is_faster(kernels[model.dtype])


@contextlib.contextmanager
def checked_once(model: Decoder) -> Iterator[None]:
    """Check once, for all layers that this thread runs in the block, that the model still has the same parts.

    Looking at each module and parameter takes a few percent of a step.
    """
    if getattr(_CHECKED, "last", (None, None))[0] is model:
        yield  # within another block
        return
    entry = None if torch.is_grad_enabled() or model.device.type != "cpu" else _current_entry(model)
    _CHECKED.last = model, entry
    try:
        yield
    finally:
        _CHECKED.last = None, None


def _current_entry(model: Decoder) -> "_Entry":
    entry = _ENTRIES.get(model)
    if entry is None or not entry.is_current():
        with _LOCK:
            entry = _ENTRIES[model] = _Entry(model)
    return entry


class _Entry:
    """A model's decoder, and the modules, parameters and hooks that it was made from."""

    def __init__(self, model: Decoder) -> None:
        modules = list(model.modules())
        owners: list[dict[str, Any]] = [
            *(module._modules for module in modules),
            *(module._parameters for module in modules),
            *(module._buffers for module in modules),
        ]
        named = [(owner, name, part) for owner in owners for name, part in owner.items()]
        self._owners, self._names, self._parts = zip(*named, strict=True)
        self._weights = [part for part in self._parts if isinstance(part, Tensor)]
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        # Kept alive, so that no memory behind the pointers is freed and reused.
        self._tensors = [weight.detach() for weight in self._weights]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._has_hooks = any(self._hooks)
        self.decoder = FusedDecoder(model) if _is_supported(model) and not self._has_hooks else None

    def is_current(self) -> bool:
        """Whether modules, parameters and hooks are still the same; the values of the weights may change."""
        return (
            all(map(is_, map(dict.get, self._owners, self._names), self._parts))
            and all(map(eq, map(Tensor.data_ptr, self._weights), self._addresses))
            and any(self._hooks) == self._has_hooks
        )


_ENTRIES: weakref.WeakKeyDictionary[Decoder, _Entry] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()
_CHECKED = threading.local()
"""`last`: the model that a block of `checked_once` is about, and its entry."""


def _is_supported(model: Decoder) -> bool:
    config = model.config
    widths = (config.width, config.head_size, config.channel_mix_width)
    ranks = (config.shift_rank, config.decay_rank, config.value_rank, config.adapter_rank)
    parameters = list(model.parameters())
    lanes = float_lanes(library())
    return (
        lanes is not None
        and not any(size % lanes for size in (*widths, *ranks))
        and all(type(module) in KNOWN for module in model.modules())
        and parameters[0].dtype in DTYPES
        and all(parameter.dtype == parameters[0].dtype and parameter.is_contiguous() for parameter in parameters)
        and all(parameter.device.type == "cpu" for parameter in parameters)
        and _is_faster(model, STEPS)
    )


def _step_kernel(dtype: torch.dtype) -> Kernel:
    def prepare() -> tuple[Work, Work]:
        model = Decoder(ModelConfig(vocab_size=4096, width=256, time_mixes=("finch_c2", "finch_c2")))
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)
        model, ids = model.to(dtype), torch.zeros(1, 1, dtype=torch.int64)
        fused = FusedDecoder(model)

        def ours() -> None:
            with torch.no_grad():
                fused.head(fused.lower(ids, [None])[0][0])

        def pytorch() -> None:
            with torch.no_grad():
                model.head(model.lower(model.embed(ids), None)[0][0])

        return ours, pytorch

    return Kernel(f"decoding, {dtype_name(dtype)}", SOURCE, NAME, prepare)


def _product_kernel(dtype: torch.dtype) -> Kernel:
    def prepare() -> tuple[Work, Work]:
        x, layer = torch.randn(MAX_TOKENS_IF_FASTER, 768).to(dtype), nn.Linear(768, 2688, bias=False, dtype=dtype)

        def pytorch() -> None:
            with torch.no_grad():
                layer(x)

        return partial(linear, x, layer, dtype), pytorch

    name = f"products of {MAX_TOKENS_IF_FASTER} tokens, {dtype_name(dtype)}"
    return Kernel(name, SOURCE, NAME, prepare)


STEPS = {dtype: _step_kernel(dtype) for dtype in DTYPES}
"""A token through two layers and a head."""
PRODUCTS = {dtype: _product_kernel(dtype) for dtype in DTYPES}
"""A product of 32 rows, of the size of a channel mix."""
