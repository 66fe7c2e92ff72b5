"""Finding the first bad tensor when a loss or a gradient is NaN or infinite."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.training.documents import find_document_starts
from goldfinch.training.parallel.processes import Processes


class Diverged(UserError):
    """Losses or gradients were NaN or infinite for more steps in a row than allowed; the last good ones are saved."""


def all_finite(tensors: Iterable[Tensor], processes: Processes) -> bool:
    """Whether all tensors are finite, in every process; of sharded tensors each process checks its part."""
    return processes.all_reduce_min(float(all(_is_finite(tensor) for tensor in tensors))) == 1


def first_bad_tensor(
    model: Decoder,
    parameters: Mapping[str, nn.Parameter],
    windows: Tensor,
    processes: Processes,
    reset_after: int | None = None,
) -> str:
    """Name the first tensor that is not finite, in the order of computation and in any process.

    Checks the weights, then each module's output in a forward pass over `windows` (B, T + 1), this process's part of
    the batch, then the gradients.

    Args:
        model: of the run.
        parameters: by name. After the forward pass, a sharded model shows gathered ones, without gradients.
        windows: the batch with which it happened.
        processes: all of them check, each its part.
        reset_after: as in `next_token_loss`.
    """
    names = list(parameters)
    if (bad := _first(names, [not _is_finite(p) for p in parameters.values()], processes)) is not None:
        return f"the weight {bad}"
    ids = windows[:, :-1]
    document_starts = None if reset_after is None else find_document_starts(ids, reset_after)
    if (bad := _first(*_bad_outputs(model, ids, document_starts), processes)) is not None:
        return f"the output of {bad}"
    gradients = [parameter.grad for parameter in parameters.values()]
    if (bad := _first(names, [g is not None and not _is_finite(g) for g in gradients], processes)) is not None:
        return f"the gradient of {bad}"
    return "the loss itself (every tensor before it is finite)"


def _is_finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(local.isfinite().all())


def _first(names: list[str], bad: list[bool], processes: Processes) -> str | None:
    """The first name that is bad in any process; names are the same in all of them."""
    first = processes.all_reduce_min(bad.index(True) if True in bad else math.inf)
    return None if first == math.inf else names[int(first)]


@torch.no_grad()
def _bad_outputs(model: Decoder, ids: Tensor, document_starts: Tensor | None) -> tuple[list[str], list[bool]]:
    """Names of the modules in order of computation, and whether the output of each is not finite."""
    names: list[str] = []
    bad: list[bool] = []

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            names.append(name)
            bad.append(any(isinstance(tensor, Tensor) and not _is_finite(tensor) for tensor in tensors))

        return hook

    hooks = [module.register_forward_hook(check(name)) for name, module in model.named_modules() if name]
    try:
        model(ids, document_starts=document_starts)
    finally:
        for hook in hooks:
            hook.remove()
    return names, bad
