"""Finding what went wrong first when a loss or a gradient is no number."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from goldfinch.errors import UserError
from goldfinch.model import Decoder


class Diverged(UserError):
    """A loss or a gradient was not finite; the weights before that step are saved."""


def first_bad_tensor(model: Decoder, windows: Tensor) -> str:
    """Name the first tensor that is not finite, in the order of computation.

    Looks at the weights, then at each module's output in a forward pass over `windows` (B, T + 1), then at the
    gradients that are there.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name}"
    output = _first_bad_output(model, windows[:, :-1])
    if output:
        return f"the output of {output}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss itself (every tensor before it is finite)"


@torch.no_grad()
def _first_bad_output(model: Decoder, ids: Tensor) -> str:
    """The first module, in order of computation, whose output is not finite; "" if there is none."""
    found: list[str] = []

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(tensor, Tensor) and not tensor.isfinite().all() for tensor in tensors):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(check(name)) for name, module in model.named_modules() if name]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
