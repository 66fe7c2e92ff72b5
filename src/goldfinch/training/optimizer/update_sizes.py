"""Relative size of a step's update: rms of the change over rms of the weights, per parameter group."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

MAX_SAMPLE = 1 << 16
"""Numbers of one tensor; larger tensors are sampled evenly."""


class UpdateSizes:
    """Samples the weights when it is created, before the step, and compares them after the step.

    Args:
        optimizer: with named groups (`build_optimizer`).
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._before = [[_sample(weight).clone() for weight in group["params"]] for group in optimizer.param_groups]

    def squares(self) -> list[float]:
        """Sum of squared changes and sum of squared weights of each group, alternating, estimated from the sample.

        With several processes these are of this one's part, to be added up.
        """
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
        """Group name -> rms of the change / rms of the weights, from `squares` summed over all processes."""
        pairs = zip(self._optimizer.param_groups, squares[::2], squares[1::2], strict=True)
        return {group["name"]: float(f"{(change / (size or 1.0)) ** 0.5:.4g}") for group, change, size in pairs}


def _sample(weight: Tensor) -> Tensor:
    """At most `MAX_SAMPLE` numbers of it, (n,)."""
    flat = _local(weight).detach().flatten()
    # An odd stride, so that no column is always left out.
    return flat[:: -(-len(flat) // MAX_SAMPLE) | 1]


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
