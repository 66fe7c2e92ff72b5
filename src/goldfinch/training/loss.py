"""The training loss, and validation on held-out text."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_per_token
from goldfinch.training.documents import document_positions, find_document_starts
from goldfinch.training.parallel.processes import Processes


def next_token_loss(
    model: Decoder,
    windows: Tensor,
    reset_after: int | None = None,
    answers: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sum of the cross entropy of each next token, in nats, in fp32, without ever holding all logits.

    Args:
        model: reads the first T tokens of each window from an empty state.
        windows: (B, T + 1) int64.
        reset_after: the id that ends documents, to keep the documents of a window apart: the model reads each from an
            empty state, and a target that starts one, which only the document before could predict, is left out (see
            `count_targets`). None: a window is one text.
        answers: (B, T + 1) bool, the tokens that count as targets; None: all.
        scale: what the sum is multiplied by.
    """
    hidden = _hidden(model, windows, reset_after)
    counted = _counted(windows, reset_after, answers)
    counted = counted if counted is None else counted.flatten()
    return linear_cross_entropy(hidden, model.head.weight, windows[:, 1:].flatten(), counted, scale)


def _counted(windows: Tensor, reset_after: int | None, answers: Tensor | None) -> Tensor | None:
    """The targets that `next_token_loss` sums over: (B, T) bool; None for all."""
    counted = None if reset_after is None else ~find_document_starts(windows, reset_after)[:, 1:]
    if answers is None:
        return counted
    return answers[:, 1:] if counted is None else counted & answers[:, 1:]


def count_targets(windows: Tensor, reset_after: int | None = None, answers: Tensor | None = None) -> int:
    """Number of tokens that `next_token_loss` sums over.

    A step divides by their number in the whole batch, over all micro-batches and processes: windows with many short
    documents have fewer.
    """
    counted = _counted(windows, reset_after, answers)
    return windows[:, 1:].numel() if counted is None else int(counted.sum())


def _hidden(model: Decoder, windows: Tensor, reset_after: int | None) -> Tensor:
    """(B, T + 1) -> (B T, D), what the head reads to predict the last T tokens of each window."""
    ids = windows[:, :-1]
    document_starts = None if reset_after is None else find_document_starts(ids, reset_after)
    return model.hidden(ids, document_starts=document_starts)[0].flatten(0, 1)


# Ends of the ranges of positions that losses are reported for; half the tokens of a full window are in the last one.
_LAST = torch.tensor([0] + [1 << power for power in range(40)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Loss over a range of positions."""

    first: int
    last: int
    """Inclusive."""
    loss: float
    """Nats per token."""
    tokens: int
    """Number of predicted tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss on held-out text."""

    loss: float
    """Nats per token. With document resets, targets that begin a document are left out here as in training."""
    bits_per_byte: float
    """The loss per byte of text, in bits: comparable between tokenizers."""
    tokens: int
    """Number of predicted tokens."""
    text_bytes: int
    """Bytes of their text."""
    by_position: tuple[PositionLoss, ...]
    """By the number of tokens of the window before the target: 1, 2, 3-4, 5-8, 9-16, ..."""
    by_document_position: tuple[PositionLoss, ...]
    """By the number of tokens of the target's own document before it in the window: 0, 1, 2, 3-4, 5-8, ... 0 are the
    targets that start a document; with resets there are none."""
    whole_set: bool = True
    """Whether this is the loss on the whole validation set; losses on its start only are not comparable with it."""
    sources: dict[str, "Validation"] = dataclasses.field(default_factory=dict)
    """The same for each data source by name, if there are several."""

    @property
    def extent(self) -> str:
        """What was read, in words."""
        if self.whole_set:
            return f"whole validation set, {self.tokens:,} tokens"
        return f"first {self.tokens:,} tokens of the validation set"

    def sources_record(self) -> dict[str, Any]:
        """The sources as a field of metrics.jsonl; empty if there is only one."""
        by_source = {
            name: {"loss": each.loss, "bits_per_byte": each.bits_per_byte} for name, each in self.sources.items()
        }
        return {"validation_by_source": by_source} if by_source else {}


# Not inference mode: training could not use the gathered weights afterwards.
@torch.no_grad()
def validate(
    model: Decoder,
    windows: Iterable[Tensor],
    token_bytes: Tensor,
    processes: Processes,
    *,
    end_of_text: int,
    document_resets: bool = False,
    answers: Iterable[Tensor] | None = None,
) -> Validation:
    """Average the loss over windows of held-out text, divided among the processes.

    Args:
        model: reads each window from an empty state.
        windows: (B, T + 1) int64 each, on the model's device; the same in all processes.
        token_bytes: (V,), bytes of text per token id.
        processes: all of them take part.
        end_of_text: the id that ends documents.
        document_resets: keep documents apart, as `next_token_loss` with `reset_after` does.
        answers: (B, T + 1) bool for each of the windows, the tokens that count as targets; None: all.

    Raises:
        UserError: none counts.
    """
    pairs = zip(windows, itertools.repeat(None) if answers is None else answers, strict=False)
    reset_after = end_of_text if document_resets else None
    text_bytes = 0.0
    # In the window, in the document; sum of the losses, number of targets; ranges of positions.
    sums = torch.zeros(2, 2, len(_LAST), dtype=torch.float64)
    while group := list(itertools.islice(pairs, processes.world_size)):
        # A process that has none left computes another's window: gathering the weights takes all of them.
        window, chosen = group[min(processes.rank, len(group) - 1)]
        hidden = _hidden(model, window, reset_after)
        losses = linear_cross_entropy_per_token(hidden, model.head.weight, window[:, 1:].flatten()).cpu()
        if processes.rank >= len(group):
            continue
        ids = window.cpu()
        document_starts = find_document_starts(ids, end_of_text)
        counted = _counted(ids, reset_after, chosen)
        counted = torch.ones_like(document_starts[:, 1:]) if counted is None else counted
        losses = losses.view(counted.shape)[counted]
        positions = torch.arange(ids.shape[1]).expand(ids.shape), document_positions(document_starts)
        sums += torch.stack([_sums_by_range(each[:, 1:][counted], losses) for each in positions])
        text_bytes += float(token_bytes[ids[:, 1:][counted]].sum())
    text_bytes, *flat = processes.all_reduce_sum(text_bytes, *sums.flatten().tolist())
    by_position, by_document_position = torch.tensor(flat, dtype=torch.float64).view_as(sums)
    nats, tokens = by_position.sum(1).tolist()
    if not tokens:
        raise UserError("the validation text has no answers, which the loss is on: give more --max-validation-tokens")
    return Validation(
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=int(tokens),
        text_bytes=int(text_bytes),
        by_position=_position_losses(by_position),
        by_document_position=_position_losses(by_document_position),
    )


def _sums_by_range(positions: Tensor, losses: Tensor) -> Tensor:
    """(n,) positions and losses -> (2, ranges): the sum of the losses in each range, and their number."""
    ranges = torch.bucketize(positions, _LAST)
    weights = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)])
    return weights.new_zeros(2, len(_LAST)).index_add_(1, ranges, weights)


def _position_losses(sums: Tensor) -> tuple[PositionLoss, ...]:
    """The mean loss of each range that has tokens."""
    last = _LAST.tolist()
    return tuple(
        PositionLoss(first=last[i - 1] + 1 if i else 0, last=last[i], loss=nats / tokens, tokens=int(tokens))
        for i, (nats, tokens) in enumerate(sums.T.tolist())
        if tokens
    )


def combine_validations(sources: dict[str, Validation]) -> Validation:
    """Combine the validations of several sources into one over all their tokens."""
    results = list(sources.values())
    if len(results) == 1:
        return results[0]
    tokens, text_bytes = sum(each.tokens for each in results), sum(each.text_bytes for each in results)
    nats = sum(each.loss * each.tokens for each in results)
    return Validation(
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=tokens,
        text_bytes=text_bytes,
        by_position=_merge_position_losses(each.by_position for each in results),
        by_document_position=_merge_position_losses(each.by_document_position for each in results),
        sources=sources,
    )


def _merge_position_losses(sources: Iterable[tuple[PositionLoss, ...]]) -> tuple[PositionLoss, ...]:
    """The means over all sources for each range."""
    parts = sorted(itertools.chain.from_iterable(sources), key=lambda part: part.first)
    merged = []
    for _, same in itertools.groupby(parts, key=lambda part: part.first):
        each = list(same)
        tokens = sum(part.tokens for part in each)
        nats = sum(part.loss * part.tokens for part in each)
        merged.append(dataclasses.replace(each[0], loss=nats / tokens, tokens=tokens))
    return tuple(merged)
