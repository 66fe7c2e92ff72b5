"""Element-wise functions whose usual gradients pass over their tensors more often than they must."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def lerp(x: Tensor, difference: Tensor, weight: Tensor) -> Tensor:
    """x + difference * weight, (..., D) each; the weight may also be (D,).

    Not `torch.lerp`, which needs one dtype while autocast gives it two. Not `torch.addcmul` where gradients are wanted:
    its gradient multiplies two tensors by the factor 1.
    """
    if torch.is_grad_enabled():
        return (difference * weight).add_(x)
    return torch.addcmul(x, difference, weight)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, differentiable once: with one pass for the gradient of x^2 and none for that of max."""
    if torch.compiler.is_compiling():  # which fuses these passes itself
        return x.relu().square()
    return _SquaredRelu.apply(x)


class _SquaredRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)
