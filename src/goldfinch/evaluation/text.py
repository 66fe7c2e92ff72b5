"""How well a model predicts plain text: with all that it has read before, and in windows of limited context."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goldfinch.data.documents import Document
from goldfinch.experiments.loss_by_position import (
    LossByPosition,
    logarithmic_bins,
    plot_loss_by_position,
    token_losses,
)
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import write_text
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.score import append_and_score
from goldfinch.inference.token_ids import require_tokenizer
from goldfinch.plots import draw
from goldfinch.training.loss import PositionLoss

RESULTS, PLOT, DATA = "results.md", "loss_by_position.png", "results.json"
HEADINGS = ("context", "nats per token", "bits per byte", "perplexity")
MAX_WINDOW_TOKENS = 4096
"""Tokens of the windows that are read together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The loss over all documents, read in one way."""

    context: int | None
    """Tokens of a window; None where each document is one context."""
    nats_per_token: float
    bits_per_byte: float
    by_position: tuple[PositionLoss, ...]
    """Losses in bins whose size doubles."""

    @property
    def name(self) -> str:
        """For tables and plots."""
        return "unlimited" if self.context is None else f"windows of {self.context:,} tokens"

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """A line of the table."""
        return self.name, f"{self.nats_per_token:.4f}", f"{self.bits_per_byte:.4f}", f"{self.perplexity:.2f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """Documents, read with unlimited context and in windows."""

    num_documents: int
    num_tokens: int
    """Predicted tokens: all of the documents."""
    num_bytes: int
    """UTF-8 bytes of the documents."""
    losses: tuple[TextLoss, ...]


class _Sums:
    """Losses by position, over documents of any lengths."""

    def __init__(self) -> None:
        self._nats = torch.zeros(0, dtype=torch.float64)
        self._tokens = torch.zeros(0, dtype=torch.int64)

    def add(self, losses: Tensor) -> None:
        """(B, T) losses of windows that begin an empty context."""
        missing = losses.shape[1] - len(self._nats)
        if missing > 0:
            self._nats, self._tokens = (torch.cat([x, x.new_zeros(missing)]) for x in (self._nats, self._tokens))
        self._nats[: losses.shape[1]] += losses.double().sum(0).cpu()
        self._tokens[: losses.shape[1]] += len(losses)

    def result(self, context: int | None, num_bytes: int) -> TextLoss:
        total, tokens = float(self._nats.sum()), int(self._tokens.sum())
        positions = LossByPosition(nats=self._nats, tokens=self._tokens)
        return TextLoss(
            context=context,
            nats_per_token=total / tokens,
            bits_per_byte=total / math.log(2) / num_bytes,
            by_position=tuple(positions.bins(logarithmic_bins(len(self._nats)))),
        )


def evaluate_text(
    lm: LanguageModel,
    documents: Iterable[Document],
    windows: Sequence[int],
    progress: Callable[[int, float], None] | None = None,
) -> TextEvaluation | None:
    """Measure the loss of documents, each after an end of text, as in training.

    Every token is predicted once in each way of reading. The first of a window, other than a document's first, is
    predicted from the token before it alone.

    Args:
        lm: the model.
        documents: of `read_documents`; they may come in pieces.
        windows: lengths of windows, each at least 1, to compare with unlimited context.
        progress: called after each document with its number of tokens, and with the position in the input, in bytes.

    Returns:
        The losses; None without documents.

    Raises:
        UserError: the model has no tokenizer.
    """
    tokenizer = require_tokenizer(lm.tokenizer)
    sums: dict[int | None, _Sums] = {None: _Sums(), **{length: _Sums() for length in windows}}
    num_documents = num_tokens = num_bytes = 0
    ids = [tokenizer.end_of_text]
    for piece in documents:
        ids += tokenizer.encode(piece.text, special_tokens=piece.is_chat)
        num_bytes += len(piece.text.encode())
        if piece.continues:
            continue
        text = torch.tensor(ids, device=lm.model.device)
        sums[None].add(_unlimited(lm, text))
        for length in windows:
            for part in _windows(text, length):
                sums[length].add(token_losses(lm.model, part))
        num_documents += 1
        num_tokens += len(ids) - 1
        if progress is not None:
            progress(len(ids) - 1, piece.position)
        ids = [tokenizer.end_of_text]
    if not num_documents:
        return None
    return TextEvaluation(
        num_documents=num_documents,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        losses=tuple(each.result(context, num_bytes) for context, each in sums.items()),
    )


def _unlimited(lm: LanguageModel, ids: Tensor) -> Tensor:
    """(T + 1,) ids -> (1, T) losses."""
    sequence = lm.read(ids[:1]).sequence
    logprobs, _ = append_and_score(sequence, ids[1:])
    return -torch.tensor(logprobs, dtype=torch.float64)[None]


def _windows(ids: Tensor, length: int) -> list[Tensor]:
    """(T + 1,) ids -> windows that overlap by one token, (B, t + 1) each, several full ones together."""
    full = (len(ids) - 1) // length
    parts = [ids[start : start + length + 1] for start in range(0, full * length, length)]
    result = [torch.stack(parts)] if parts else []
    result = [part for whole in result for part in whole.split(max(1, MAX_WINDOW_TOKENS // length))]
    rest = ids[full * length :]
    return [*result, rest[None]] if len(rest) > 1 else result


def write_text_report(
    evaluation: TextEvaluation, model: str, files: Sequence[str], output: Path, trained_length: int | None
) -> None:
    """Write results.md, results.json and loss_by_position.png into `output`.

    Args:
        evaluation: the losses.
        model: its name or description.
        files: what was read.
        output: the folder.
        trained_length: sequence length that the model was trained with, if known.
    """
    content: dict[str, Any] = {"model": model, "files": list(files), "trained_length": trained_length}
    content |= dataclasses.asdict(evaluation)
    for loss, plain in zip(evaluation.losses, content["losses"], strict=True):
        plain["perplexity"] = loss.perplexity
    write_text(output / DATA, json.dumps(content, indent=1) + "\n")
    parts = [
        "# Loss of plain text",
        f"Model: {model}. {evaluation.num_documents:,} documents, {evaluation.num_tokens:,} tokens, "
        f"{evaluation.num_bytes:,} bytes.",
        markdown_table(HEADINGS, (loss.row for loss in evaluation.losses)),
        "Each document follows an end of text. Unlimited: a token is predicted from all tokens of its document before "
        "it. Windows: from those in its window, and the token before it. Every token counts once.",
        f"![Loss by position]({PLOT})",
    ]
    write_text(output / RESULTS, "\n\n".join(parts) + "\n")
    curves = {loss.name: loss.by_position for loss in evaluation.losses}
    draw(output / PLOT, lambda axes: plot_loss_by_position(axes, curves, [trained_length] if trained_length else []))
