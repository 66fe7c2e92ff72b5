"""Initial weights of every parameter (SPEC 7; Finch paper, appendix I).

Each module with parameters of its own initialises them in `initialize_in_layer`. Modules of PyTorch, and low-rank
parts, are initialised the same in every layer.
"""

from collections.abc import Container, Iterable

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
        rest = [module for module in chosen if module is not model.embedding]
        for module in [*rest, model.embedding] if model.embedding in chosen else rest:
            _initialize_anywhere(module)
        if model.head in chosen:
            initialize_head(model.head)
        _initialize_layers(model.blocks, chosen)


@torch.no_grad()
def initialize_body(body: nn.Module, blocks: nn.ModuleList) -> None:
    """Initialise everything but a head, from PyTorch's global random state.

    Args:
        body: a module with all that is in a `Decoder` but the head.
        blocks: its layers.

    Raises:
        TypeError: no rule initialises a parameter.
    """
    modules = list(body.modules())
    for module in modules:
        _initialize_anywhere(module)
    _initialize_layers(blocks, modules)


def _initialize_layers(blocks: nn.ModuleList, chosen: Container[nn.Module]) -> None:
    for layer, block in enumerate(blocks):
        for module in filter(chosen.__contains__, block.modules()):
            _initialize_in_layer(module, layer, len(blocks))


@torch.no_grad()
def initialize_head(head: nn.Linear) -> None:
    """Initialise the head, from PyTorch's global random state."""
    vocab_size, width = head.weight.shape
    orthogonal_(head, 0.5 * max(vocab_size / width, 1) ** 0.5)


def _initialize_anywhere(module: nn.Module) -> None:
    """Initialise parameters that are the same in every layer; all others are NaN until `initialize_in_layer`."""
    match module:
        case nn.Embedding():
            module.weight.copy_(torch.empty(module.weight.shape).uniform_(-EMBEDDING_BOUND, EMBEDDING_BOUND))
        case nn.LayerNorm() | nn.GroupNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case LowRank():
            nn.init.zeros_(module.a)
            module.b.copy_(torch.empty(module.b.shape).uniform_(-LOW_RANK_BOUND, LOW_RANK_BOUND))
        case nn.Linear():
            orthogonal_(module, 1.0)
        case _:
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
