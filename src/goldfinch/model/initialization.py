"""Initial weights of every parameter (SPEC 7; Finch paper, appendix I)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.token_shift import DataDependentLerp
from goldfinch.mixers import Finch, FinchC2, Gold, GptAlpha, LlamaAttention
from goldfinch.mixers.finch import Decay
from goldfinch.model.decoder import Decoder

EMBEDDING_BOUND = 1e-4
LOW_RANK_BOUND = 0.01


def mixing_vector(use: str, layer: int, layers: int, width: int) -> Tensor:
    """Initial token-shift weights of one use, (D,), float32.

    Args:
        use: "r", "g", "q" start closer to the token itself, "v", "v2" are lowered with depth, the rest is plain.
        layer: index in the whole stack.
        layers: L.
        width: D.
    """
    depth, height = _depth(layer, layers), 1 - layer / layers
    channel = torch.arange(width, dtype=torch.float32) / width
    match use:
        case "r" | "g" | "q":
            return 1 - channel ** (height / 2)
        case "v" | "v2":
            return 1 - channel**height - 0.3 * depth
        case _:
            return 1 - channel**height


def decay_base(layer: int, layers: int, width: int) -> Tensor:
    """Initial lambda_d, (D,), float32: from slow (-6) to fast (-1) over the channels, steeper in higher layers."""
    channel = torch.arange(width, dtype=torch.float32) / (width - 1)
    return -6 + 5 * channel ** (0.7 + 1.3 * _depth(layer, layers))


def bonus(layer: int, layers: int, heads: int, head_size: int) -> Tensor:
    """Initial u, (H, N), float32."""
    width = heads * head_size
    channel = torch.arange(width, dtype=torch.float32)
    zigzag = 0.1 * ((channel + 1) % 3 - 1)
    return (_depth(layer, layers) * (1 - channel / (width - 1)) + zigzag).view(heads, head_size)


def _depth(layer: int, layers: int) -> float:
    """0 at the lowest layer, 1 at the highest; 0 in a model of one layer."""
    return layer / max(layers - 1, 1)


@torch.no_grad()
def initialize(model: Decoder, seed: int, parts: Iterable[nn.Module] | None = None) -> None:
    """Fill every parameter of `model`, on any device, from `seed` alone; the global random state is not touched.

    Args:
        model: its size and depth decide where each parameter starts.
        seed: of the random numbers.
        parts: modules of `model` to fill, with all that is in them, and to leave the rest alone; None for all of it.
    """
    # In order: the numbers are drawn one after the other.
    chosen = {module: None for part in ((model,) if parts is None else parts) for module in part.modules()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in chosen:
            match module:
                case nn.LayerNorm() | nn.GroupNorm():
                    nn.init.ones_(module.weight)
                    nn.init.zeros_(module.bias)
                case LowRank():
                    nn.init.zeros_(module.a)
                    module.b.copy_(torch.empty(module.b.shape).uniform_(-LOW_RANK_BOUND, LOW_RANK_BOUND))
                case nn.Linear():
                    _orthogonal(module, 1.0)
        width, vocab_size = model.config.width, model.config.vocab_size
        if model.embedding in chosen:
            weight = model.embedding.weight
            weight.copy_(torch.empty(weight.shape).uniform_(-EMBEDDING_BOUND, EMBEDDING_BOUND))
        if model.head in chosen:
            _orthogonal(model.head, 0.5 * max(vocab_size / width, 1) ** 0.5)
        for layer, block in enumerate(model.blocks):
            for module in filter(chosen.__contains__, block.modules()):
                _initialize_in_layer(module, layer, len(model.blocks))


def _initialize_in_layer(module: nn.Module, layer: int, layers: int) -> None:
    """The parameters whose start depends on the layer, or on the part that the module plays in it."""

    def mixing(parameter: Tensor, use: str) -> None:
        parameter.copy_(mixing_vector(use, layer, layers, parameter.shape[-1]))

    match module:
        case DataDependentLerp():
            mixing(module.mu_x, "x")
            for row, use in zip(module.mu, module.uses, strict=True):
                mixing(row, use)
        case Decay():
            module.base.copy_(decay_base(layer, layers, module.base.shape[0]))
        case RwkvChannelMix():
            mixing(module.mu_r, "channel mix")
            mixing(module.mu_k, "channel mix")
            nn.init.zeros_(module.receptance.weight)
            nn.init.zeros_(module.value.weight)
        case Gold():
            mixing(module.mu_e, "e")
            mixing(module.mu_k, "k")
            mixing(module.mu_v, "v")
    match module:
        case Finch() | FinchC2():
            _orthogonal(module.key, 0.1)
            if module.bonus is not None:
                module.bonus.copy_(bonus(layer, layers, *module.bonus.shape))
    if isinstance(module, Finch):
        _orthogonal(module.gate, 0.1)
    if isinstance(module, (Finch, FinchC2, Gold, GptAlpha)):
        nn.init.constant_(module.norm.weight, ((1 + layer) / layers) ** 0.7)
    if isinstance(module, (Finch, FinchC2, Gold, GptAlpha, LlamaAttention)):
        nn.init.zeros_(module.output.weight)


def _orthogonal(linear: nn.Linear, gain: float) -> None:
    """Orthogonal rows or columns; drawn in fp32 on the CPU, so that every device and dtype starts from one model."""
    weight = torch.empty(linear.weight.shape)
    nn.init.orthogonal_(weight, gain)
    linear.weight.copy_(weight)
