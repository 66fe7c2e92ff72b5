"""From what users pass to ids that a model can read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError


def token_ids(text: str | Sequence[int] | Tensor, tokenizer: Tokenizer | None, vocab_size: int) -> Tensor:
    """A text, or ids, as a checked (T,) int64 tensor, T >= 1.

    Raises:
        UserError: no tokens, ids outside the vocabulary, a text that is no Unicode or where there is no tokenizer.
    """
    try:
        ids = torch.as_tensor(require_tokenizer(tokenizer).encode(text) if isinstance(text, str) else text)
    except UnicodeEncodeError as error:
        raise UserError(f"the text is no valid Unicode at character {error.start}: give UTF-8 text") from error
    if ids.numel() == 0:
        raise UserError("the text has no tokens: give at least one character")
    if ids.dim() != 1:
        raise UserError(f"token ids must be one sequence, not of shape {tuple(ids.shape)}")
    check_token_ids(ids, vocab_size)
    return ids.to(torch.int64)


def check_token_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise a UserError where `ids`, of any shape but not empty, are no integers in the vocabulary."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise UserError(f"token ids must be integers, not {ids.dtype}")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"token id {wrong} is outside this model's vocabulary, 0 to {vocab_size - 1}")


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, or a UserError that says how to get one."""
    if tokenizer is None:
        raise UserError("this model has no tokenizer: pass token ids, or put a tokenizer.json beside its weights")
    return tokenizer
