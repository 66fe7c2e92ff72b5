"""The gradient of a batch that comes in parts: micro-batches, one after the other, in several processes."""

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from goldfinch.model import Decoder
from goldfinch.training.loss import count_targets, next_token_loss
from goldfinch.training.parallel.parallelize import synchronize_gradients
from goldfinch.training.parallel.processes import Processes


def accumulate(
    model: Decoder,
    windows: Tensor,
    micro_batch_size: int,
    processes: Processes,
    autocast: contextlib.AbstractContextManager,
    reset_after: int | None = None,
) -> float:
    """Add up the gradients of the mean loss over the batch.

    Args:
        model: its gradients are there afterwards, those of all processes together.
        windows: this process's part of the batch, (B, T + 1); equal parts everywhere.
        micro_batch_size: windows that go through the model at once; 0 for all.
        processes: all that share the batch.
        autocast: around the forward passes.
        reset_after: as in `next_token_loss`; the mean is over the targets that count, of all processes.

    Returns:
        This process's part of that mean: the sum over the processes is the mean, in nats per token.
    """
    targets = float(windows[:, 1:].numel() * processes.world_size)
    if reset_after is not None:
        (targets,) = processes.all_reduce_sum(count_targets(windows, reset_after))
    losses = []
    parts = windows.split(micro_batch_size or len(windows))
    for number, part in enumerate(parts, start=1):
        synchronize_gradients(model, number == len(parts))
        with autocast:
            loss = next_token_loss(model, part, reset_after) / max(1.0, targets)
        # The mean over the processes is what they make of their gradients; the sum is due.
        (loss * processes.world_size).backward()
        losses.append(loss.detach())
    # Not in the loop: a GPU would have to finish each part before the next one is sent.
    return sum(loss.item() for loss in losses)


def clip_gradient(parameters: Iterable[nn.Parameter], largest_norm: float) -> float:
    """Scale the gradient of all parameters down to a norm of `largest_norm`; returns the norm that it had.

    One whose norm is not finite is left as it is, so that it can be looked at.
    """
    parameters = list(parameters)
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    total = total.full_tensor() if isinstance(total, DTensor) else total
    norm = float(total)
    if math.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, total)
    return norm
