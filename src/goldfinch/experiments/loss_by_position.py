"""Loss by position: how well a token is predicted after a given number of tokens."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.ops.cross_entropy import linear_cross_entropy_per_token
from goldfinch.training.loss import PositionLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHUNK_SIZE = 1024
"""Tokens that go through the model at once, the state carried on: bounds the memory of long windows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossByPosition:
    """Sums over windows of T tokens, each from an empty state; entry t is for what follows the first t + 1 tokens."""

    nats: Tensor
    """(T,) float64: sum of the losses."""
    tokens: Tensor
    """(T,) int64: how many windows reach so far."""

    def bins(self, lasts: Sequence[int]) -> list[PositionLoss]:
        """Means over the tokens read from each of `lasts` to the next; bins without tokens are left out."""
        result = []
        for before, last in itertools.pairwise([0, *lasts]):
            tokens = int(self.tokens[before:last].sum())
            if tokens:
                loss = float(self.nats[before:last].sum()) / tokens
                result.append(PositionLoss(first=before + 1, last=last, loss=loss, tokens=tokens))
        return result


def logarithmic_bins(length: int) -> list[int]:
    """Ends of bins that double: 1, 2, 4, 8 ... and `length`, so that the bins are 1, 2, 3-4, 5-8, 9-16 ..."""
    return [*(1 << power for power in range((length - 1).bit_length())), length]


def linear_bins(length: int, count: int = 16) -> list[int]:
    """Ends of `count` bins of the same size, or of fewer with one position each."""
    return sorted({-(-length * index // count) for index in range(1, count + 1)})


@torch.inference_mode()
def token_losses(model: Decoder, windows: Tensor) -> Tensor:
    """The loss of each token of windows that start from an empty state: (B, T + 1) int64 -> (B, T) nats."""
    state, losses = None, []
    for ids, targets in zip(windows[:, :-1].split(CHUNK_SIZE, 1), windows[:, 1:].split(CHUNK_SIZE, 1), strict=True):
        hidden, state = model.hidden(ids, state)
        flat = linear_cross_entropy_per_token(hidden.flatten(0, 1), model.head.weight, targets.flatten())
        losses.append(flat.view_as(targets))
    return torch.cat(losses, dim=1)


def loss_by_position(model: Decoder, windows: Iterable[Tensor], length: int) -> LossByPosition:
    """Add up over windows.

    Args:
        model: on any device; reads each window from an empty state.
        windows: (B, t + 1) int64 each, t <= `length`.
        length: T.
    """
    nats, tokens = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.int64)
    for window in windows:
        losses = token_losses(model, window.to(model.device)).cpu()
        count = losses.shape[1]
        nats[:count] += losses.double().sum(0)
        tokens[:count] += len(losses)
    return LossByPosition(nats=nats, tokens=tokens)


def plot_loss_by_position(
    axes: "Axes", curves: Mapping[str, Sequence[PositionLoss]], trained_lengths: Iterable[int] = ()
) -> None:
    """Draw losses in bins that double, a curve for each name, and a line at each trained length."""
    for name, bins in curves.items():
        axes.plot([(each.first + each.last) / 2 for each in bins], [each.loss for each in bins], "o-", label=name)
    for length in sorted(set(trained_lengths)):
        axes.axvline(length, color="0.6", linestyle=":", label=f"trained on {length:,}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens read", ylabel="loss (nats per token)", title="loss by position in a long text")
    axes.grid(alpha=0.3)
