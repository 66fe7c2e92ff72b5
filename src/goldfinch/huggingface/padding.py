"""Rows of a batch with padding anywhere, and documents that restart in them."""

import torch
from torch import Tensor


class Rows:
    """The new tokens of each row of a batch.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, S) with S >= T, 0 for padding; the last T columns are those of the ids. None: no padding.
        position_ids: (B, T) or (1, T): a document starts where they are 0. None: a row is one document.

    Raises:
        ValueError: shapes do not fit.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise ValueError(f"input_ids must be (batch, tokens) whole numbers, not {tuple(input_ids.shape)}")
        self.ids = input_ids.to(torch.int64)
        self.shape = self.ids.shape
        self.is_token: Tensor | None = None
        """(B, T) bool; None if all are."""
        if attention_mask is not None:
            if (
                attention_mask.dim() != 2
                or len(attention_mask) != len(input_ids)
                or attention_mask.shape[1] < self.shape[1]
            ):
                raise ValueError(
                    f"attention_mask must be ({len(input_ids)}, {self.shape[1]} or more), not "
                    f"{tuple(attention_mask.shape)}: a GoldFinch takes 2-D masks of padding"
                )
            is_token = attention_mask[:, attention_mask.shape[1] - self.shape[1] :].to(self.ids.device).bool()
            self.is_token = None if bool(is_token.all()) else is_token
        self.document_starts: Tensor | None = None
        """(B, T) bool, the tokens within rows that begin a document; None if there are none."""
        if position_ids is not None and position_ids.shape[-1] == self.shape[1] and position_ids.dim() == 2:
            starts = (position_ids == 0).expand(self.shape).clone()
            if self.is_token is not None:
                starts &= self.is_token
            # The first token of a row begins a document anyway.
            starts[:, 0] = False
            if self.is_token is not None:
                starts[torch.arange(len(starts)), self.is_token.int().argmax(1)] = False
            self.document_starts = starts if bool(starts.any()) else None

    def tokens(self, row: int) -> Tensor:
        """The ids of a row without padding, (t,)."""
        return self.ids[row] if self.is_token is None else self.ids[row][self.is_token[row]]

    def num_wanted(self, row: int, wanted: int) -> int:
        """How many of a row's last tokens have outputs in its last `wanted` columns.

        They are those among these columns and, if the first column is padding, the token before: padding behind a token
        has the output of this token, so that a text may also continue after it.
        """
        if self.is_token is None:
            return wanted
        first = self.shape[1] - wanted
        count = int(self.is_token[row, first:].sum())
        return count + int(not self.is_token[row, first] and bool(self.is_token[row, :first].any()))

    def num_before(self, row: int, wanted: int) -> int:
        """How many of a row's last `wanted` columns are before its first token."""
        if self.is_token is None:
            return 0
        first = int(self.is_token[row].int().argmax()) if bool(self.is_token[row].any()) else self.shape[1]
        return max(0, first - (self.shape[1] - wanted))

    def fill(self, values: Tensor) -> Tensor:
        """(B, T, D), the padding behind a token with the values of this token."""
        if self.is_token is None:
            return values
        columns = torch.arange(self.shape[1], device=self.ids.device)
        last = torch.where(self.is_token, columns, 0).cummax(dim=1).values
        return values.take_along_dim(last[:, :, None], 1)

    def order(self) -> Tensor | None:
        """(B, T): columns with the padding of each row behind its tokens; None if it is there already.

        Causality then hides padding from all tokens, wherever it was.
        """
        if self.is_token is None or bool((self.is_token[:, 1:] <= self.is_token[:, :-1]).all()):
            return None
        return (~self.is_token).int().argsort(dim=1, stable=True)

    def behind(self, past_ids: Tensor, past_is_token: Tensor) -> "Rows":
        """These columns behind earlier ones: (B, S) ids and, bool, which of them are tokens."""
        if not past_ids.numel():
            return self
        past_is_token = past_is_token.to(self.ids.device)
        is_token = torch.ones_like(self.ids, dtype=torch.bool) if self.is_token is None else self.is_token
        ids = torch.cat([past_ids.to(self.ids.device), self.ids], dim=1)
        return Rows(ids, torch.cat([past_is_token, is_token], dim=1), None)

    def place(self, row: int, values: Tensor, wanted: int, to: Tensor) -> None:
        """Write what belongs to the last tokens of a row to its places among the last columns.

        Args:
            row: of the batch.
            values: (n, ...), one for each of the tokens that `num_wanted` counts.
            wanted: W.
            to: (B, W, ...).
        """
        if self.is_token is None:
            to[row] = values
            return
        number = self.is_token[row].cumsum(0)  # of the last token, up to each column
        index = number[self.shape[1] - wanted :] - 1 - (number[-1] - len(values))
        has_token = index >= 0
        to[row, has_token] = values[index[has_token]]

    def together(self, values: dict[int, list[Tensor]], wanted: int) -> list[Tensor]:
        """Several tensors of each row, (n, ...) as in `place` -> as many of the batch, (B, W, ...), 0 for padding."""
        tensors: list[Tensor] = []
        for row, of_row in values.items():
            if not tensors:
                tensors = [each.new_zeros(len(self.ids), wanted, *each.shape[1:]) for each in of_row]
            for each, to in zip(of_row, tensors, strict=False):  # a row without new tokens has none
                self.place(row, each, wanted, to)
        return tensors
