"""Checking what users pass as text or token ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError


def token_ids(
    text: str | Sequence[int] | Tensor, tokenizer: Tokenizer | None, vocab_size: int, special_tokens: bool = False
) -> Tensor:
    """A text, or ids, as a checked (T,) int64 tensor, T >= 1.

    Args:
        text: the text or ids.
        tokenizer: None where there is none.
        vocab_size: ids must be below it.
        special_tokens: whether the names of special tokens in a text are encoded as these tokens.

    Raises:
        UserError: no tokens, ids outside the vocabulary, a text that is not valid Unicode or without a tokenizer.
    """
    if isinstance(text, str):
        try:
            ids = torch.tensor(require_tokenizer(tokenizer).encode(text, special_tokens=special_tokens))
        except UnicodeEncodeError as error:
            raise UserError(f"the text is not valid Unicode at character {error.start}: give UTF-8 text") from error
    else:
        ids = torch.as_tensor(text)
    if ids.numel() == 0:
        raise UserError("the text has no tokens: give at least one character")
    if ids.dim() != 1:
        raise UserError(f"token ids must be one sequence, not a tensor of shape {tuple(ids.shape)}")
    check_token_ids(ids, vocab_size)
    return ids.to(torch.int64)


def check_token_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise a UserError unless `ids`, of any shape but not empty, are integers in the vocabulary."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"token ids must be integers, not {ids.dtype}")
    smallest, largest = int(ids.min()), int(ids.max())
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(f"token id {wrong} is outside this model's vocabulary, 0 to {vocab_size - 1}")


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, or a UserError that says how to get one."""
    if tokenizer is None:
        raise UserError("this model has no tokenizer: pass token ids, or put a tokenizer.json next to its weights")
    return tokenizer
