"""The loss, and what a model achieves on held-out text."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_per_token
from goldfinch.training.documents import document_positions, find_document_starts
from goldfinch.training.parallel.processes import Processes


def next_token_loss(model: Decoder, windows: Tensor, reset_after: int | None = None) -> Tensor:
    """Sum of the cross entropy of each next token, in nats, in fp32; never are all logits there at once.

    Args:
        model: takes the first T tokens of each window from an empty state.
        windows: (B, T + 1) int64.
        reset_after: the id that ends documents, to keep those of a window apart: the model begins each from an empty
            state, and a target that begins one, which only the document before could predict, is left out (see
            `count_targets`). None: a window is one text.
    """
    hidden = _hidden(model, windows, reset_after)
    counted = None if reset_after is None else ~find_document_starts(windows, reset_after)[:, 1:].flatten()
    return linear_cross_entropy(hidden, model.head.weight, windows[:, 1:].flatten(), counted)


def count_targets(windows: Tensor, reset_after: int | None = None) -> int:
    """How many tokens `next_token_loss` sums over. A step divides by their number in the whole batch, over all its
    parts and processes: windows with many short documents have fewer.
    """
    num_starts = 0 if reset_after is None else int(find_document_starts(windows, reset_after)[:, 1:].sum())
    return windows[:, 1:].numel() - num_starts


def _hidden(model: Decoder, windows: Tensor, reset_after: int | None) -> Tensor:
    """(B, T + 1) -> (B T, D), what the head reads to predict the last T tokens of each window."""
    ids = windows[:, :-1]
    document_starts = None if reset_after is None else find_document_starts(ids, reset_after)
    return model.hidden(ids, document_starts=document_starts)[0].flatten(0, 1)


# The last positions of the ranges that losses are told by: half the tokens of a full window are in the last one.
_LAST = torch.tensor([0] + [1 << power for power in range(40)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Loss over a range of positions."""

    first: int
    last: int
    """Included."""
    loss: float
    """Nats per token."""
    tokens: int
    """How many were predicted there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss on held-out text."""

    loss: float
    """Nats per token. With document resets, targets that begin a document are left out here as in training."""
    bits_per_byte: float
    """The same, per byte of text: comparable between tokenizers."""
    tokens: int
    """How many were predicted."""
    text_bytes: int
    """Of the text that they stand for."""
    by_position: tuple[PositionLoss, ...]
    """By how many tokens of the window were read before: 1, 2, 3-4, 5-8, 9-16, ..."""
    by_document_position: tuple[PositionLoss, ...]
    """By how many of these were of the target's own document: 0, 1, 2, 3-4, 5-8, ... Of a document that begins before
    its window, what the window holds counts. 0 are the targets that begin a document; with resets there are none."""
    sources: dict[str, "Validation"] = dataclasses.field(default_factory=dict)
    """The same of each source of the data, by name, where there are several."""

    def sources_record(self) -> dict[str, Any]:
        """The sources as a field of metrics.jsonl; nothing where there is one."""
        of = {name: {"loss": each.loss, "bits_per_byte": each.bits_per_byte} for name, each in self.sources.items()}
        return {"validation_by_source": of} if of else {}


# Not inference mode: gathered weights would be of no use to training afterwards.
@torch.no_grad()
def validate(
    model: Decoder,
    windows: Iterable[Tensor],
    token_bytes: Tensor,
    processes: Processes,
    *,
    end_of_text: int,
    document_resets: bool = False,
) -> Validation:
    """Average over windows of held-out text, shared out among the processes.

    Args:
        model: reads each window from an empty state.
        windows: (B, T + 1) int64 each, on the model's device; the same in all processes.
        token_bytes: (V,), bytes of text that each token id stands for.
        processes: all of them, at the same time.
        end_of_text: the id that ends documents.
        document_resets: keep documents apart, as `next_token_loss` with `reset_after` does.
    """
    windows = iter(windows)
    text_bytes = 0.0
    # In the window, in the document; sum of the losses, number of targets; ranges of positions.
    sums = torch.zeros(2, 2, len(_LAST), dtype=torch.float64)
    while turn := list(itertools.islice(windows, processes.world_size)):
        # Who has none left computes another's along: gathering the weights takes all of them.
        window = turn[min(processes.rank, len(turn) - 1)]
        hidden = _hidden(model, window, end_of_text if document_resets else None)
        losses = linear_cross_entropy_per_token(hidden, model.head.weight, window[:, 1:].flatten()).cpu()
        if processes.rank >= len(turn):
            continue
        ids = window.cpu()
        document_starts = find_document_starts(ids, end_of_text)
        counted = ~document_starts[:, 1:] if document_resets else torch.ones_like(document_starts[:, 1:])
        losses = losses.view(counted.shape)[counted]
        places = torch.arange(ids.shape[1]).expand(ids.shape), document_positions(document_starts)
        sums += torch.stack([_sums(place[:, 1:][counted], losses) for place in places])
        text_bytes += float(token_bytes[ids[:, 1:][counted]].sum())
    text_bytes, *flat = processes.all_reduce_sum(text_bytes, *sums.flatten().tolist())
    by_position, by_document_position = torch.tensor(flat, dtype=torch.float64).view_as(sums)
    nats, tokens = by_position.sum(1).tolist()
    return Validation(
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=int(tokens),
        text_bytes=int(text_bytes),
        by_position=_means(by_position),
        by_document_position=_means(by_document_position),
    )


def _sums(positions: Tensor, losses: Tensor) -> Tensor:
    """Two of (n,) -> (2, ranges): the sum of the losses in each range of positions, and their number."""
    ranges = torch.bucketize(positions, _LAST)
    weights = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)])
    return weights.new_zeros(2, len(_LAST)).index_add_(1, ranges, weights)


def _means(sums: Tensor) -> tuple[PositionLoss, ...]:
    """Of the ranges in which there are tokens."""
    last = _LAST.tolist()
    return tuple(
        PositionLoss(first=last[i - 1] + 1 if i else 0, last=last[i], loss=nats / tokens, tokens=int(tokens))
        for i, (nats, tokens) in enumerate(sums.T.tolist())
        if tokens
    )


def together(sources: dict[str, Validation]) -> Validation:
    """The validations of several sources as one, over all their tokens."""
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
        by_position=_merged(each.by_position for each in results),
        by_document_position=_merged(each.by_document_position for each in results),
        sources=sources,
    )


def _merged(sources: Iterable[tuple[PositionLoss, ...]]) -> tuple[PositionLoss, ...]:
    """The means over all sources, range by range."""
    parts = sorted(itertools.chain.from_iterable(sources), key=lambda part: part.first)
    merged = []
    for _, same in itertools.groupby(parts, key=lambda part: part.first):
        each = list(same)
        tokens = sum(part.tokens for part in each)
        nats = sum(part.loss * part.tokens for part in each)
        merged.append(dataclasses.replace(each[0], loss=nats / tokens, tokens=tokens))
    return tuple(merged)
