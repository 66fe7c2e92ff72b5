"""Muon for the matrices inside the blocks and AdamW for the rest, as one optimizer."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer


class Muon(torch.optim.Muon):
    """torch.optim.Muon that also takes sharded matrices (DTensor), with bit-identical results.

    Muon orthogonalises whole matrices, so each process gathers gradient and momentum of one matrix after the other,
    computes the whole update and keeps its shard. Products of shards would need less traffic, but their bf16 sums would
    depend on the number of processes.
    """

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
        """One step of every matrix that has a gradient."""
        assert closure is None
        matrices = [matrix for group in self.param_groups for matrix in group["params"]]
        sharded = {matrix: matrix.grad for matrix in matrices if isinstance(matrix.grad, DTensor)}
        for matrix in sharded:
            matrix.grad = None
        super().step()
        # One by one: torch.optim.Muon skips matrices without a gradient, so only one is gathered at a time.
        for matrix, gradient in sharded.items():
            matrix.grad = _whole(gradient)
            state = self.state[matrix]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = _whole(state["momentum_buffer"])
            super().step()
            state["momentum_buffer"] = state["momentum_buffer"].redistribute(placements=gradient.placements)
            matrix.grad = None
        for matrix, gradient in sharded.items():
            matrix.grad = gradient


def _whole(tensor: DTensor) -> DTensor:
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)


class Combined(Optimizer):
    """Several optimizers as one: all their groups, one state per parameter, one step.

    It can be saved, loaded and given a learning rate like any other optimizer.

    Args:
        optimizers: over different parameters.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self._optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts use the groups and the state of the combination."""
        groups = iter(self.param_groups)
        for optimizer in self._optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
        """One step of each."""
        assert closure is None
        for optimizer in self._optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of all parts."""
        super().load_state_dict(state_dict)
        self._share()
