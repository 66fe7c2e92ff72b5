"""Measuring how many bytes a text takes, on allocated tensors, next to what `accounting` computes."""

import dataclasses
from collections.abc import Iterable, Iterator

import psutil
import torch
from torch import Tensor

from goldfinch.cache.key_cache import KeyCache, bytes_per_token, id_dtype
from goldfinch.cache.latents import FloatLatents, LatentFormat, latent_format
from goldfinch.config import ModelConfig
from goldfinch.inference.prefill import read_lower, tail_length
from goldfinch.model import Decoder
from goldfinch.model.accounting import account
from goldfinch.state import AttentionState, BlockState

LENGTHS = tuple(2**power for power in (10, 12, 14, 16, 18, 20))  # tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Cache and state of one model after one text."""

    tokens: int
    """Length of the text."""
    computed: int
    """Bytes according to `accounting`."""
    measured: int | None
    """Bytes of the tensors; None if they did not fit."""

    @property
    def total(self) -> int:
        """The measured bytes, else the computed ones."""
        return self.computed if self.measured is None else self.measured

    @property
    def per_token(self) -> float:
        """Bytes per token, with the state."""
        return self.total / self.tokens


def llama_like(config: ModelConfig) -> ModelConfig:
    """A Llama of the same depth and width."""
    plan: list[str] = ["llama"] * config.num_layers
    return dataclasses.replace(config, time_mixes=tuple(plan), channel_mix="swiglu", channel_width=0, rope=None)


def measure(
    config: ModelConfig,
    latents: str = "bfloat16",
    lengths: Iterable[int] | None = None,
    max_bytes: int | None = None,
) -> Iterator[MemoryUse]:
    """Fill the cache and state of a model in bf16, and count their bytes.

    The numbers are random; the tensors and their shapes come from running the model on the meta device, where weights
    take no memory.

    Args:
        config: of the model.
        latents: format of the compressed keys.
        lengths: of the texts, in tokens, ascending; None for 1k to 1M.
        max_bytes: maximum bytes to fill; None for half of the free memory.

    Yields:
        One result per length.

    Raises:
        UserError: an unknown format, or one that does not fit the model.
    """
    stored = latent_format(latents, config.latent_width) if config.num_gold_layers else None
    max_bytes = psutil.virtual_memory().available // 2 if max_bytes is None else max_bytes
    per_token, fixed = _computed_bytes(config, stored)
    states, recent = _meta_states(config)
    cache = KeyCache(config, stored, torch.device("cpu"))
    for tokens in lengths or LENGTHS:
        computed = tokens * per_token + fixed
        measured = None
        if computed <= max_bytes:
            measured = _filled_bytes(states, recent, tokens)
            if stored is not None:
                _fill(cache, config, tokens)
                measured += cache.nbytes
        yield MemoryUse(tokens=tokens, computed=computed, measured=measured)


def _computed_bytes(config: ModelConfig, stored: LatentFormat | None) -> tuple[int, int]:
    """Bytes per token, and of the state, by `accounting`, with latents in the given format instead of bf16."""
    accounting = account(config, id_bytes=id_dtype(config.vocab_size).itemsize)
    per_token = accounting.cache_bytes_per_token
    if stored is not None:
        per_token += bytes_per_token(config, stored) - bytes_per_token(config, FloatLatents(torch.bfloat16))
    return per_token, accounting.state_bytes


@torch.inference_mode()
def _meta_states(config: ModelConfig) -> tuple[list[BlockState], Tensor]:
    """The state of a sequence on the meta device: states of all layers, and the last outputs below GOLD."""
    model = Decoder.on_meta(config).to(torch.bfloat16)
    ids = torch.zeros(1, tail_length(model) + 1, dtype=torch.int64, device="meta")
    recent = read_lower(model, ids, [None]).states[0].tail if config.num_gold_layers else torch.empty(0)
    return model.hidden(ids[:, :1])[1].blocks, recent


def _filled_bytes(states: Iterable[BlockState], recent: Tensor, tokens: int) -> int:
    """Allocate and fill the states after `tokens` tokens, and count their bytes."""
    shapes = [(recent.shape, recent.dtype)]
    for state in states:
        grown = (state.time_mix.keys, state.time_mix.values) if isinstance(state.time_mix, AttentionState) else ()
        for tensor in state.tensors():
            shape = list(tensor.shape)
            if any(tensor is other for other in grown):
                shape[2] = tokens
            shapes.append((torch.Size(shape), tensor.dtype))
    # Filled, because the system provides memory when it is written to, not when it is allocated.
    tensors = [torch.ones(shape, dtype=dtype) for shape, dtype in shapes]
    return sum(tensor.nbytes for tensor in tensors)


def _fill(cache: KeyCache, config: ModelConfig, tokens: int) -> None:
    """Append random tokens up to this number."""
    generator = torch.Generator().manual_seed(0)
    while len(cache) < tokens:
        count = min(cache.block_size, tokens - len(cache))
        ids = torch.randint(config.vocab_size, (count,), generator=generator)
        cache.append(ids, torch.randn(count, config.latent_width, generator=generator))
