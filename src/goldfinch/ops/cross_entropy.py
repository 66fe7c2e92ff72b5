"""Cross entropy of a linear layer's outputs without holding them all: (tokens x vocabulary) is the largest tensor of
all where the vocabulary is large.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 25  # numbers: 128 MiB in fp32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Sum of the cross entropy of softmax(hidden weight^T) against the targets, in nats.

    The same as `F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")`. Logits exist for a few
    tokens at a time; their gradients are computed along with them, so that nothing is computed twice. Autocast applies
    to the products; the softmax runs in fp32, in fp64 where the logits are.

    Args:
        hidden: (T, D).
        weight: (V, D).
        targets: (T,) int64, below V.
        counted: (T,) bool, the tokens to sum over; None for all.
        scale: what the sum is multiplied by. Multiplying it afterwards costs a pass over the weight's gradient.

    Returns:
        A scalar, fp32 or fp64; differentiable once in `hidden` and `weight`.
    """
    if counted is None:
        counted = torch.ones_like(targets, dtype=torch.bool)
    return _LinearCrossEntropy.apply(hidden, weight, targets, counted, scale, torch.is_grad_enabled())


@torch.no_grad()
def linear_cross_entropy_per_token(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The terms of `linear_cross_entropy`'s sum, (T,), without gradients."""
    x, w, count = _for_products(hidden, weight)
    losses = []
    for part, expected in zip(x.split(count), targets.split(count), strict=True):
        logits = part @ w.T
        wide = logits.to(_type_of_sums(hidden))
        losses.append(wide.logsumexp(-1) - wide.gather(-1, expected[:, None])[:, 0])
    return torch.cat(losses)


def _for_products(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, int]:
    """Both in the type of their products, and how many tokens to take at once."""
    device = hidden.device.type
    # Autocast would convert the weight again for every part.
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(low), weight.to(low), max(1, LOGITS_AT_ONCE // len(weight))


def _type_of_sums(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, scale: float, needed: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, where needed, its gradients in `hidden` and `weight`."""
    x, w, count = _for_products(hidden, weight)
    total = torch.zeros((), dtype=_type_of_sums(hidden), device=hidden.device)
    d_hidden: list[Tensor] = []
    d_weight: Tensor | None = None
    for part, expected, counts in zip(
        x.split(count), targets[:, None].split(count), counted[:, None].split(count), strict=True
    ):
        logits = part @ w.T
        wide = logits.to(total.dtype)
        of_targets = wide.gather(-1, expected)
        # In place, as these are the largest tensors of a step.
        largest = wide.amax(-1, keepdim=True)
        exponentials = wide.sub_(largest).exp_()
        sums = exponentials.sum(-1, keepdim=True)
        total += scale * (sums.log() + largest - of_targets).masked_fill(~counts, 0).sum()
        if not any(needed):
            continue
        # d loss / d logits: the probabilities, less 1 at the target, times the scale; 0 in rows that do not count.
        gradient = exponentials.mul_((scale / sums).masked_fill(~counts, 0))
        gradient.scatter_add_(-1, expected, -scale * counts.to(gradient.dtype))
        gradient = gradient.to(logits.dtype)
        if needed[0]:
            d_hidden.append((gradient @ w).to(hidden.dtype))
        if not needed[1]:
            continue
        if d_weight is None:
            d_weight = (gradient.T @ part).to(weight.dtype)
        elif d_weight.dtype == w.dtype:
            d_weight.addmm_(gradient.T, part)
        else:
            d_weight += gradient.T @ part
    return total, torch.cat(d_hidden) if needed[0] else None, d_weight


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, scale: float, with_gradients: bool
    ) -> Tensor:
        needed = (with_gradients and ctx.needs_input_grad[0], with_gradients and ctx.needs_input_grad[1])
        total, *gradients = _loss_and_gradients(hidden, weight, targets, counted, scale, needed)
        ctx.save_for_backward(hidden, weight, targets, counted)
        ctx.scale, ctx.needed, ctx.gradients = scale, needed, gradients
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Given away, so that autograd need not copy what are among the largest tensors of a step. Whoever retains the
        # graph and differentiates again waits for the products again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            hidden, weight, targets, counted = ctx.saved_tensors
            _, *gradients = _loss_and_gradients(hidden, weight, targets, counted, ctx.scale, ctx.needed)
        # Elsewhere looking would wait for the device, and a tensor without content has nothing to look at.
        is_one = type(gradient) is Tensor and gradient.device.type == "cpu" and bool(gradient == 1)
        if not is_one:
            gradients = [None if part is None else part.mul_(gradient) for part in gradients]
        return *gradients, None, None, None, None
