"""Batches of windows over a token dataset: shuffled for training, in order for validation."""

from collections.abc import Iterator

import numpy as np
import torch

from goldfinch.data.shards import TokenDataset
from goldfinch.errors import UserError


class Batches:
    """Shuffled training batches, each a pure function of (seed, step): resuming needs the step alone.

    Window i holds tokens i T .. (i + 1) T, one more than T, so that neighbours share a token and every token is a
    target once per epoch; only the first token, and at the end what does not fill a window, never are. Each epoch
    has its own order; a batch that an epoch cannot fill goes on in the next one.

    Attributes:
        windows: windows in an epoch.

    Args:
        dataset: the tokens.
        sequence_length: T, targets in a window.
        batch_size: B, windows in a step, over all processes.
        seed: of the order, 0 <= seed < 2**64.
        rank, world_size: this process takes rows rank * B / world_size onwards of each batch.

    Raises:
        UserError: the dataset is shorter than one window.
        ValueError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        sequence_length: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} sequences cannot be shared by {world_size} processes")
        self.windows = (len(dataset) - 1) // sequence_length
        if self.windows < 1:
            raise UserError(
                f"the data has {len(dataset):,} tokens, but one window needs {sequence_length + 1:,}: "
                "give a shorter --context or more text"
            )
        self._dataset = dataset
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self._seed = seed
        share = batch_size // world_size
        self._rows = range(rank * share, (rank + 1) * share)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> torch.Tensor:
        """The batch of `step`, from 0 on: (B / world_size, T + 1) int64; inputs [:, :-1], targets [:, 1:]."""
        rows = [self._dataset.tokens(start, self._sequence_length + 1) for start in self.window_starts(step)]
        return torch.from_numpy(np.stack(rows))

    def window_starts(self, step: int) -> list[int]:
        """Where in the dataset the windows of `batch(step)` begin, in tokens."""
        return [self._start(step * self._batch_size + row) for row in self._rows]

    def _start(self, place: int) -> int:
        epoch, position = divmod(place, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[position]) * self._sequence_length

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy keeps the raw numbers of Philox for ever, but not what Generator.permutation makes of them: a run can
        # be resumed under another version.
        key = np.array([self._seed, epoch], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(self.windows), kind="stable")


def sequential_windows(
    dataset: TokenDataset, sequence_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[torch.Tensor]:
    """The windows in order, for validation: every token but the first is a target exactly once.

    Args:
        dataset: the tokens.
        sequence_length: T, targets in a window.
        batch_size: windows in a batch, at most.
        max_tokens: stop after this many targets.

    Yields:
        (B, T + 1) int64, B <= batch_size. The last window may be shorter and then comes alone: (1, t + 1).

    Raises:
        UserError: the dataset has no target, which takes two tokens.
    """
    targets = len(dataset) - 1
    if targets < 1:
        raise UserError("the validation data has fewer than two tokens: prepare it with more text")
    targets = targets if max_tokens is None else min(targets, max_tokens)
    whole = targets // sequence_length
    for first in range(0, whole, batch_size):
        count = min(batch_size, whole - first)
        tokens = dataset.tokens(first * sequence_length, count * sequence_length + 1)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)[::sequence_length]
        yield torch.from_numpy(windows.copy())
    if rest := targets % sequence_length:
        yield torch.from_numpy(dataset.tokens(whole * sequence_length, rest + 1))[None]
