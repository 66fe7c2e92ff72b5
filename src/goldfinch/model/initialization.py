"""Initial weights of every parameter (SPEC 7; Finch paper, appendix I).

Each module with parameters of its own initialises them in `initialize_in_layer`. Modules of PyTorch, and low-rank
parts, are initialised the same in every layer.
"""

from collections.abc import Iterable

import torch
from torch import nn

from goldfinch.layers.initial_values import EMBEDDING_BOUND, LOW_RANK_BOUND, orthogonal_
from goldfinch.layers.low_rank import LowRank
from goldfinch.model.decoder import Decoder


@torch.no_grad()
def initialize(model: Decoder, seed: int, parts: Iterable[nn.Module] | None = None) -> None:
    """Initialise every parameter of `model`, on any device, from `seed` alone; the global random state is unchanged.

    Args:
        model: its size and depth decide the initial values.
        seed: random seed.
        parts: modules of `model` to initialise, with their submodules; None for the whole model.

    Raises:
        TypeError: no rule initialises a parameter.
    """
    # In order: random numbers are drawn one after another.
    chosen = {module: None for part in ((model,) if parts is None else parts) for module in part.modules()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in chosen:
            _initialize_anywhere(module, is_embedding=module is model.embedding)
        width, vocab_size = model.config.width, model.config.vocab_size
        if model.embedding in chosen:
            weight = model.embedding.weight
            weight.copy_(torch.empty(weight.shape).uniform_(-EMBEDDING_BOUND, EMBEDDING_BOUND))
        if model.head in chosen:
            orthogonal_(model.head, 0.5 * max(vocab_size / width, 1) ** 0.5)
        for layer, block in enumerate(model.blocks):
            for module in filter(chosen.__contains__, block.modules()):
                _initialize_in_layer(module, layer, len(model.blocks))


def _initialize_anywhere(module: nn.Module, is_embedding: bool) -> None:
    """Initialise parameters that are the same in every layer; all others are NaN until `initialize_in_layer`."""
    match module:
        case nn.LayerNorm() | nn.GroupNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case LowRank():
            nn.init.zeros_(module.a)
            module.b.copy_(torch.empty(module.b.shape).uniform_(-LOW_RANK_BOUND, LOW_RANK_BOUND))
        case nn.Linear():
            orthogonal_(module, 1.0)
        case _ if not is_embedding:
            for name, parameter in module.named_parameters(recurse=False):
                if not hasattr(module, "initialize_in_layer"):
                    raise TypeError(f"no rule initialises {type(module).__name__}.{name}: add initialize_in_layer")
                parameter.fill_(torch.nan)


def _initialize_in_layer(module: nn.Module, layer: int, num_layers: int) -> None:
    start = getattr(module, "initialize_in_layer", None)
    if not callable(start):
        return
    start(layer, num_layers)
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.isnan().any():
            raise TypeError(f"{type(module).__name__}.initialize_in_layer does not set {name}")
