"""The gradient of a batch, accumulated over micro-batches and processes."""

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
    answers: Tensor | None = None,
) -> float:
    """Accumulate the gradients of the mean loss over the batch.

    Args:
        model: has the gradients afterwards, summed over all processes.
        windows: this process's part of the batch, (B, T + 1); all parts have the same size.
        micro_batch_size: windows per forward pass; 0 for all.
        processes: those that share the batch.
        autocast: for the forward passes.
        reset_after, answers: as in `next_token_loss`; the mean is over the targets that count, in all processes.

    Returns:
        This process's part of that mean, in nats per token: the parts of all processes add up to it.
    """
    targets = float(windows[:, 1:].numel() * processes.world_size)
    if reset_after is not None or answers is not None:
        (targets,) = processes.all_reduce_sum(count_targets(windows, reset_after, answers))
    losses = []
    size = micro_batch_size or len(windows)
    parts = windows.split(size)
    counted = [None] * len(parts) if answers is None else answers.split(size)
    for number, (part, part_answers) in enumerate(zip(parts, counted, strict=True), start=1):
        synchronize_gradients(model, number == len(parts))
        # Processes average their gradients; what is needed is the sum.
        scale = processes.world_size / max(1.0, targets)
        with autocast:
            loss = next_token_loss(model, part, reset_after, part_answers, scale)
        loss.backward()
        losses.append(loss.detach())
    # Not in the loop: each item() waits for the GPU.
    return sum(loss.item() for loss in losses) / processes.world_size


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient of all parameters down to a norm of `max_norm`; returns the norm before.

    A gradient whose norm is not finite is left unchanged, for `first_bad_tensor`.
    """
    parameters = list(parameters)
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    total = total.full_tensor() if isinstance(total, DTensor) else total
    norm = float(total)
    if math.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return norm
