"""Documents inside windows of tokens: where they start, and the position of each token in its document."""

import torch
from torch import Tensor


def find_document_starts(tokens: Tensor, end_of_text: int) -> Tensor:
    """Mark the tokens that follow an end of text: (B, T) int64 -> (B, T) bool.

    A window's first token is not marked: usually it is in the middle of a document, and nothing is before it.
    """
    document_starts = torch.zeros_like(tokens, dtype=torch.bool)
    document_starts[:, 1:] = tokens[:, :-1] == end_of_text
    return document_starts


def document_positions(document_starts: Tensor) -> Tensor:
    """Number of tokens of the same document before each token in its window: (B, T) bool -> (B, T) int64."""
    positions = torch.arange(document_starts.shape[1], device=document_starts.device)
    return positions - (positions * document_starts).cummax(dim=1).values
