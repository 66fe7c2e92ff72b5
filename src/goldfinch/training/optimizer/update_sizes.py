"""How far a step moves the weights: the size of the update over that of the weights, per group of parameters."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

MOST_NUMBERS = 1 << 16
"""Of one tensor; larger ones are sampled evenly."""


class UpdateSizes:
    """Takes a sample of the weights when it is made, before the step, and compares it with them after the step.

    Args:
        optimizer: with named groups (`build_optimizer`).
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._before = [[_sample(weight).clone() for weight in group["params"]] for group in optimizer.param_groups]

    def squares(self) -> list[float]:
        """Sum of the squared changes and of the squared weights of each group, one after the other, estimated from the
        sample; with several processes, of this one's part: they can be added up."""
        sums = []
        for group, before in zip(self._optimizer.param_groups, self._before, strict=True):
            changes, sizes = [], []
            for weight, old in zip(group["params"], before, strict=True):
                new = _sample(weight)
                scale = _local(weight).numel() / max(len(new), 1)
                changes.append(scale * (new - old).float().square().sum())
                sizes.append(scale * new.float().square().sum())
            sums += torch.stack([torch.stack(changes).sum(), torch.stack(sizes).sum()]).tolist()
        return sums

    def relative(self, squares: list[float]) -> dict[str, float]:
        """rms of the change / rms of the weights by the group's name, from `squares`, added up over all processes."""
        pairs = zip(self._optimizer.param_groups, squares[::2], squares[1::2], strict=True)
        return {group["name"]: float(f"{(change / (size or 1.0)) ** 0.5:.4g}") for group, change, size in pairs}


def _sample(weight: Tensor) -> Tensor:
    """At most `MOST_NUMBERS` of it, (n,)."""
    flat = _local(weight).detach().flatten()
    # An odd distance: no column is left out for ever.
    return flat[:: -(-len(flat) // MOST_NUMBERS) | 1]


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
