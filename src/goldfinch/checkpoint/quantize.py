"""Rounding the matrices of a model to integers."""

from collections.abc import Iterable, Iterator
from typing import get_args

import torch
from torch import nn

from goldfinch.argument_checks import shortened
from goldfinch.errors import UserError
from goldfinch.layers.quantized import QuantizedEmbedding, QuantizedLinear, WeightKind
from goldfinch.model import Decoder
from goldfinch.model.token_cat import TokenCat

QUANTIZED: dict[type[nn.Module], type[QuantizedLinear | QuantizedEmbedding]] = {
    nn.Linear: QuantizedLinear,
    nn.Embedding: QuantizedEmbedding,
}
"""What takes the place of a module."""
SCALE = ".scale"
"""How the names of scales end."""


def quantize(model: Decoder, weights: WeightKind) -> None:
    """Round embedding, head and the matrices of all layers to integers, in place.

    Norms, mixing vectors, decays and low-rank parts stay as they are, and so does TokenCat: they are small, and what
    they compute is kept.

    Raises:
        UserError: it is quantized already, or there are no such weights.
    """
    if weights not in get_args(WeightKind):
        raise UserError(f"weights must be None or {' or '.join(get_args(WeightKind))}, not {shortened(weights)}")
    if weight_kind(model) is not None:
        raise UserError("the weights are int8 already: quantize the model that they were made from")
    for parent, name, module in list(_matrices(model)):
        setattr(parent, name, QUANTIZED[type(module)].of(module.weight))


def weight_kind(model: Decoder) -> WeightKind | None:
    """What the matrices of a model are quantized to; None if they are not."""
    return "int8" if isinstance(model.embedding, QuantizedEmbedding) else None


def expect_quantized(model: Decoder, names: Iterable[str]) -> bool:
    """Make a model without weights ready for those of a file; whether some are quantized.

    Args:
        model: on the meta device.
        names: of all tensors in the file; where one has a scale, its module is quantized.
    """
    scaled = {name.removesuffix(SCALE) for name in names if name.endswith(SCALE)}
    paths = {id(module): path for path, module in model.named_modules()}
    for parent, name, module in list(_matrices(model)):
        if paths[id(module)] in scaled:
            rows, columns = module.weight.shape
            with torch.device("meta"):
                setattr(parent, name, QUANTIZED[type(module)](rows, columns, module.weight.dtype))
    return bool(scaled)


def _matrices(model: Decoder) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Embedding]]:
    """Each module that is quantized, with the module that it is a part of, and its name there."""
    for parent in model.modules():
        if isinstance(parent, TokenCat):
            continue
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear | nn.Embedding):
                yield parent, name, module
