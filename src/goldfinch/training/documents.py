"""Documents inside windows of tokens: where they begin, and how far into one a token stands."""

import torch
from torch import Tensor


def find_document_starts(tokens: Tensor, end_of_text: int) -> Tensor:
    """The tokens that follow an end of text: (B, T) int64 -> (B, T) bool.

    A window's first token counts as none: usually it stands in the middle of a document, and nothing is before it.
    """
    document_starts = torch.zeros_like(tokens, dtype=torch.bool)
    document_starts[:, 1:] = tokens[:, :-1] == end_of_text
    return document_starts


def document_positions(document_starts: Tensor) -> Tensor:
    """How many tokens of its own document the window holds before each token: (B, T) bool -> (B, T) int64."""
    places = torch.arange(document_starts.shape[1], device=document_starts.device)
    return places - (places * document_starts).cummax(dim=1).values
