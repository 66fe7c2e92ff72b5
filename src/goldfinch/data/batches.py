"""Batches of windows: shuffled, from one or several sources, for training; in order for validation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from goldfinch.data.mixture import Mixture, WindowRef
from goldfinch.data.shards import TokenDataset
from goldfinch.data.stream_windows import StreamWindows
from goldfinch.errors import UserError


class Windows(Protocol):
    """An endless sequence of windows: `ShuffledWindows` of a dataset, or `StreamWindows` of a stream."""

    @property
    def num_windows(self) -> int | None:
        """Number of windows per epoch; None if unknown."""

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the sequence, from 0: (T + 1,) integers."""

    @property
    def has_answers(self) -> bool:
        """Whether the loss is on some tokens only."""

    def answers(self, index: int) -> np.ndarray:
        """Whether the loss is on each token of that window: (T + 1,) bool."""

    def describe(self, index: int) -> str:
        """Where that window comes from, for messages."""


class ShuffledWindows:
    """A dataset's windows in an endless random order, with random access.

    Window i of the dataset holds tokens i T .. (i + 1) T, one more than T: neighbours share a token, and every token is
    a target once per epoch, except the first token and an incomplete window at the end. Each epoch has its own order.

    Args:
        dataset: the tokens.
        length: T, targets per window.
        seed: random seed, 0 <= seed < 2**64.
        stream: selects one of several orders of the same seed, 0 <= stream < 2**64.

    Raises:
        UserError: the dataset is shorter than one window.
    """

    def __init__(self, dataset: TokenDataset, length: int, seed: int, stream: int = 0) -> None:
        self._windows = (len(dataset) - 1) // length
        if self._windows < 1:
            raise UserError(
                f"{dataset.directory} has {len(dataset):,} tokens, but one window needs {length + 1:,}: "
                "give a shorter --sequence-length or more text"
            )
        self._dataset = dataset
        self._length = length
        self._seed = seed
        self._stream = stream
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @property
    def num_windows(self) -> int:
        """Number of windows per epoch."""
        return self._windows

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the order, from 0: (T + 1,) int64."""
        return self._dataset.tokens(self._start(index), self._length + 1)

    @property
    def has_answers(self) -> bool:
        """Whether the loss is on some tokens only."""
        return self._dataset.has_answers

    def answers(self, index: int) -> np.ndarray:
        """Whether the loss is on each token of that window: (T + 1,) bool."""
        return self._dataset.answers(self._start(index), self._length + 1)

    def describe(self, index: int) -> str:
        """Where that window comes from."""
        return f"{self._dataset.directory}, token {self._start(index)}"

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self._windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[position]) * self._length

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy guarantees the raw numbers of Philox, but not the results of Generator.permutation: a run can be resumed
        # with another version.
        key = np.array([self._seed, epoch], dtype=np.uint64)
        counter = np.array([0, 0, 0, self._stream], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(self._windows), kind="stable")


class Batches:
    """The batch of every step, a pure function of the step: resuming needs only the step, except with streams.

    Streams are read in order and have a state, which is saved with the step and is the same in all processes.

    Attributes:
        num_windows: windows per epoch of all sources; None if unknown.

    Args:
        sources: where windows come from.
        mixture: which source each window of the order comes from.
        batch_size: B, windows per step, over all processes.
        rank, world_size: this process takes B / world_size rows of each batch, from row rank * B / world_size on.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """

    def __init__(
        self, sources: Sequence[Windows], mixture: Mixture, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} sequences cannot be shared by {world_size} processes")
        counts = [source.num_windows for source in sources]
        self.num_windows = None if None in counts else sum(filter(None, counts))
        self._sources = sources
        self._streams = {i: source for i, source in enumerate(sources) if isinstance(source, StreamWindows)}
        self._mixture = mixture
        self._batch_size = batch_size
        share = batch_size // world_size
        self._rows = range(rank * share, (rank + 1) * share)

    def batch(self, step: int) -> torch.Tensor:
        """The batch of `step`, from 0: (B / world_size, T + 1) int64; inputs are [:, :-1], targets [:, 1:].

        With streams, `step` must be that of the last call or a later one.
        """
        for number, index in self._stream_indices(step):
            self._streams[number].seek(index)
        rows = [self._sources[ref.source].window(ref.window) for ref in self._window_refs(step)]
        return torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))

    def answers(self, step: int) -> torch.Tensor | None:
        """Whether the loss is on each token of `batch(step)`: (B / world_size, T + 1) bool; None: always on all."""
        if not any(source.has_answers for source in self._sources):
            return None
        rows = [self._sources[ref.source].answers(ref.window) for ref in self._window_refs(step)]
        return torch.from_numpy(np.stack(rows))

    def describe(self, step: int) -> list[str]:
        """Where the windows of `batch(step)` come from."""
        return [self._sources[ref.source].describe(ref.window) for ref in self._window_refs(step)]

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """What `load_state` needs, besides the seed, to continue with `batch(step)`; empty without streams."""
        return {
            f"{number}/{name}": tensor
            for number, index in self._stream_indices(step)
            for name, tensor in self._streams[number].state(index).items()
        }

    def load_state(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state(step)`, on any number of processes.

        Raises:
            UserError: the state is of a run with other settings.
        """
        for number, index in self._stream_indices(step):
            prefix = f"{number}/"
            own = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
            self._streams[number].load_state(index, own)

    def close(self) -> None:
        """Stop reading ahead."""
        for stream in self._streams.values():
            stream.close()

    def _stream_indices(self, step: int) -> list[tuple[int, int]]:
        """For each stream its number, and the index of the first window that `step` or a later step takes from it."""
        counts = self._mixture.counts(step * self._batch_size)
        return [(number, counts[number]) for number in self._streams]

    def _window_refs(self, step: int) -> list[WindowRef]:
        return [self._mixture.window_ref(step * self._batch_size + row) for row in self._rows]


def sequential_windows(
    dataset: TokenDataset,
    sequence_length: int,
    batch_size: int,
    max_tokens: int | None = None,
    *,
    answers: bool = False,
) -> Iterator[torch.Tensor]:
    """The windows in order, for validation: every token except the first is a target exactly once.

    Args:
        dataset: the tokens.
        sequence_length: T, targets per window.
        batch_size: maximum windows per batch.
        max_tokens: stop after this many targets.
        answers: yield `TokenDataset.answers` of the windows, bool, instead of their tokens.

    Yields:
        (B, T + 1) int64, B <= batch_size. A shorter last window comes in a batch of its own: (1, t + 1).

    Raises:
        UserError: the dataset has fewer than two tokens, so no target.
    """
    targets = len(dataset) - 1
    if targets < 1:
        raise UserError("the validation data has fewer than two tokens: prepare it with more text")
    targets = targets if max_tokens is None else min(targets, max_tokens)
    whole = targets // sequence_length
    read = dataset.answers if answers else dataset.tokens
    for first in range(0, whole, batch_size):
        count = min(batch_size, whole - first)
        tokens = read(first * sequence_length, count * sequence_length + 1)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)[::sequence_length]
        yield torch.from_numpy(windows.copy())
    if rest := targets % sequence_length:
        yield torch.from_numpy(read(whole * sequence_length, rest + 1))[None]
