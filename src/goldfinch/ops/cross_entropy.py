"""Cross entropy of a linear layer's outputs without holding them all: (tokens x vocabulary) is the largest tensor of
all where the vocabulary is large.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 25  # numbers: 128 MiB in fp32


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
    """Sum of the cross entropy of softmax(hidden weight^T) against the targets, in nats.

    The same as `F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")`. Logits exist for a few
    tokens at a time; their gradients are computed along with them, so that nothing is computed twice. Autocast applies
    to the products; the softmax runs in fp32, in fp64 where the logits are.

    Args:
        hidden: (T, D).
        weight: (V, D).
        targets: (T,) int64, below V.
        counted: (T,) bool, the tokens to sum over; None for all.

    Returns:
        A scalar, fp32 or fp64; differentiable once in `hidden` and `weight`.
    """
    if counted is None:
        counted = torch.ones_like(targets, dtype=torch.bool)
    return _LinearCrossEntropy.apply(hidden, weight, targets, counted, torch.is_grad_enabled())


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


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, with_gradients: bool
    ) -> Tensor:
        needs_hidden, needs_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        x, w, count = _for_products(hidden, weight)
        total = torch.zeros((), dtype=_type_of_sums(hidden), device=hidden.device)
        d_hidden: list[Tensor] = []
        d_weight = torch.zeros_like(weight) if needs_weight else None
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
            total += (sums.log() + largest - of_targets).masked_fill(~counts, 0).sum()
            if not (needs_hidden or needs_weight):
                continue
            # d loss / d logits: the probabilities, less 1 at the target; 0 in rows that do not count.
            gradient = exponentials.mul_(sums.reciprocal().masked_fill(~counts, 0))
            gradient.scatter_add_(-1, expected, -counts.to(gradient.dtype))
            gradient = gradient.to(logits.dtype)
            if needs_hidden:
                d_hidden.append((gradient @ w).to(hidden.dtype))
            if d_weight is not None and d_weight.dtype == w.dtype:
                d_weight.addmm_(gradient.T, part)
            elif d_weight is not None:
                d_weight += gradient.T @ part
        ctx.d_hidden, ctx.d_weight = torch.cat(d_hidden) if needs_hidden else None, d_weight
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.d_hidden, ctx.d_weight
        return (
            None if d_hidden is None else (d_hidden * gradient).to(d_hidden.dtype),
            None if d_weight is None else (d_weight * gradient).to(d_weight.dtype),
            None,
            None,
            None,
        )
