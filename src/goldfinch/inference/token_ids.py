"""Checking what users pass as text or token ids."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from goldfinch.argument_checks import shortened
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError


def token_ids(text: object, tokenizer: Tokenizer | None, vocab_size: int, special_tokens: bool = False) -> Tensor:
    """A text, or ids, as a checked (T,) int64 tensor, T >= 1.

    Args:
        text: a str; or ids as a sequence of integers, an array or a tensor.
        tokenizer: None where there is none.
        vocab_size: ids must be below it.
        special_tokens: whether the names of special tokens in a text are encoded as these tokens.

    Raises:
        UserError: it is neither; no tokens, ids outside the vocabulary, a text that is not valid Unicode or without a
            tokenizer.
    """
    if isinstance(text, str):
        try:
            ids = torch.tensor(require_tokenizer(tokenizer).encode(text, special_tokens=special_tokens))
        except UnicodeEncodeError as error:
            raise UserError(f"the text is not valid Unicode at character {error.start}: give UTF-8 text") from error
    else:
        ids = _integers(text)
    if ids.numel() == 0:
        raise UserError("the text has no tokens: give at least one character")
    if ids.dim() != 1:
        raise UserError(
            f"token ids must be one sequence, not of shape {tuple(ids.shape)}; `LanguageModel.generate` takes several"
        )
    return check_token_ids(ids, vocab_size)


def token_id_rows(ids: object, vocab_size: int) -> Tensor:
    """Ids of several sequences of one length, as a checked (B, T) int64 tensor, B and T >= 1.

    Raises:
        UserError: they are no integers, of another shape, or outside the vocabulary.
    """
    if isinstance(ids, str):
        raise UserError("token ids are needed here, not a text: give lm.encode(text)[None]")
    ids = _integers(ids)
    if ids.dim() != 2 or ids.numel() == 0:
        raise UserError(
            f"token ids must be (batch, tokens), not of shape {tuple(ids.shape)}; [None] makes a batch of one sequence"
        )
    return check_token_ids(ids, vocab_size)


def is_batch(prompt: object) -> bool:
    """Whether it is several prompts rather than one text or one sequence of ids."""
    if isinstance(prompt, Tensor | np.ndarray):
        return prompt.ndim == 2
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Sequence):
        return False
    return len(prompt) == 0 or isinstance(prompt[0], str | Sequence | Tensor | np.ndarray)


def num_common_ids(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids two sequences, (T,) and (U,), have in common at the start."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _integers(ids: object) -> Tensor:
    """Integers of any type and container as a tensor; nothing else is taken for ids."""
    if isinstance(ids, os.PathLike):
        raise UserError(f"a text or token ids are needed, not a path: give Path({str(ids)!r}).read_text()")
    if isinstance(ids, bytes | bytearray):
        raise UserError("a text or token ids are needed, not bytes: decode them first, as .decode() does")
    if not isinstance(ids, Tensor | np.ndarray | Sequence):
        raise UserError(f"a text or token ids are needed, not {shortened(ids)}")
    if not isinstance(ids, Tensor):
        try:
            array = np.asarray(ids)
        except ValueError:
            raise UserError("token ids must be one sequence of integers, not sequences of several lengths") from None
        if array.dtype == object and all(isinstance(each, int) for each in array.flat):
            raise UserError(f"token id {max(array.flat, key=abs)} is outside the vocabulary of any model")
        if array.dtype.kind == "U":
            raise UserError("a list of texts is given where one text is needed; `LanguageModel.generate` takes several")
        if array.size and array.dtype.kind not in "iu":
            raise UserError(f"token ids must be integers, not {shortened(ids)}")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise UserError(f"token id {array.max()} is outside the vocabulary of any model")
        ids = torch.from_numpy(array.astype(np.int64))
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"token ids must be integers, not {ids.dtype}")
    return ids.to(torch.int64)


def check_token_ids(ids: Tensor, vocab_size: int) -> Tensor:
    """`ids`, int64 of any shape but not empty, or a UserError unless all are in the vocabulary."""
    smallest, largest = int(ids.min()), int(ids.max())
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(f"token id {wrong} is outside this model's vocabulary, 0 to {vocab_size - 1}")
    return ids


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, or a UserError that says how to get one."""
    if tokenizer is None:
        raise UserError("this model has no tokenizer: pass token ids, or put a tokenizer.json next to its weights")
    return tokenizer
