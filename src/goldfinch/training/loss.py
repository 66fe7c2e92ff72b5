"""The loss, and what a model achieves on held-out text."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.ops.cross_entropy import linear_cross_entropy
from goldfinch.training.processes import Processes


def next_token_loss(model: Decoder, windows: Tensor) -> Tensor:
    """Sum of the cross entropy of each next token, in nats, in fp32; never are all logits there at once.

    Args:
        model: takes the first T tokens of each window from an empty state.
        windows: (B, T + 1) int64.
    """
    hidden, _ = model.hidden(windows[:, :-1])
    return linear_cross_entropy(hidden.flatten(0, 1), model.head.weight, windows[:, 1:].flatten())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss on held-out text."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """The same, per byte of text: comparable between tokenizers."""
    tokens: int
    """How many were predicted."""


# Not inference mode: gathered weights would be of no use to training afterwards.
@torch.no_grad()
def validate(model: Decoder, windows: Iterable[Tensor], token_bytes: Tensor, processes: Processes) -> Validation:
    """Average over windows of held-out text, shared out among the processes.

    Args:
        model: reads each window from an empty state.
        windows: (B, T + 1) int64 each, on the model's device; the same in all processes.
        token_bytes: (V,), bytes of text that each token id stands for.
        processes: all of them, at the same time.
    """
    windows = iter(windows)
    nats, tokens, text_bytes = 0.0, 0.0, 0.0
    while turn := list(itertools.islice(windows, processes.count)):
        # Who has none left computes another's along: gathering the weights takes all of them.
        window = turn[min(processes.rank, len(turn) - 1)]
        loss = float(next_token_loss(model, window))
        if processes.rank < len(turn):
            nats += loss
            tokens += window[:, 1:].numel()
            text_bytes += float(token_bytes[window[:, 1:].cpu()].sum())
    nats, tokens, text_bytes = processes.sums(nats, tokens, text_bytes)
    bits = nats / math.log(2)
    return Validation(loss=nats / tokens, bits_per_byte=bits / text_bytes, tokens=int(tokens))
