"""Batches of windows: of one or several sources, shuffled, for training; in order for validation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from goldfinch.data.mixture import Mixture, Turn
from goldfinch.data.shards import TokenDataset
from goldfinch.data.stream_windows import StreamWindows
from goldfinch.errors import UserError


class Windows(Protocol):
    """An endless order of windows: `ShuffledWindows` of a dataset, `StreamWindows` of a stream."""

    @property
    def windows(self) -> int | None:
        """How many make an epoch; None where that is not known."""

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the order, from 0 on: (T + 1,) whole numbers."""

    def place(self, index: int) -> str:
        """Where that window is to be found, for messages."""


class ShuffledWindows:
    """A dataset's windows in a random order without end, any of them computed at once.

    Window i of the dataset holds tokens i T .. (i + 1) T, one more than T, so that neighbours share a token and every
    token is a target once per epoch; only the first token, and at the end what does not fill a window, never are.
    Each epoch has its own order.

    Args:
        dataset: the tokens.
        length: T, targets in a window.
        seed: of the order, 0 <= seed < 2**64.
        stream: another number, another order of the same seed, 0 <= stream < 2**64.

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
    def windows(self) -> int:
        """How many make an epoch."""
        return self._windows

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the order, from 0 on: (T + 1,) int64."""
        return self._dataset.tokens(self._start(index), self._length + 1)

    def place(self, index: int) -> str:
        """Where that window is to be found."""
        return f"{self._dataset.directory}, token {self._start(index)}"

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self._windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[position]) * self._length

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy keeps the raw numbers of Philox for ever, but not what Generator.permutation makes of them: a run can
        # be resumed under another version.
        key = np.array([self._seed, epoch], dtype=np.uint64)
        counter = np.array([0, 0, 0, self._stream], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(self._windows), kind="stable")


class Batches:
    """The batch of every step, a pure function of the step: resuming needs the step alone, but for streams.

    Streams give their batches in order, and have a state that goes with the step; all processes have the same.

    Attributes:
        windows: windows in an epoch of all sources together; None where that is not known.

    Args:
        sources: where windows come from.
        mixture: whose turn it is.
        batch_size: B, windows in a step, over all processes.
        rank, world_size: this process takes rows rank * B / world_size onwards of each batch.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """

    def __init__(
        self, sources: Sequence[Windows], mixture: Mixture, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} sequences cannot be shared by {world_size} processes")
        counts = [source.windows for source in sources]
        self.windows = None if None in counts else sum(filter(None, counts))
        self._sources = sources
        self._streams = {i: source for i, source in enumerate(sources) if isinstance(source, StreamWindows)}
        self._mixture = mixture
        self._batch_size = batch_size
        share = batch_size // world_size
        self._rows = range(rank * share, (rank + 1) * share)

    def batch(self, step: int) -> torch.Tensor:
        """The batch of `step`, from 0 on: (B / world_size, T + 1) int64; inputs [:, :-1], targets [:, 1:].

        With streams, `step` is that of the last call, the one after it, or a later one.
        """
        for number, index in self._stream_places(step):
            self._streams[number].seek(index)
        rows = [self._sources[turn.source].window(turn.window) for turn in self._turns(step)]
        return torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))

    def places(self, step: int) -> list[str]:
        """Where the windows of `batch(step)` are to be found."""
        return [self._sources[turn.source].place(turn.window) for turn in self._turns(step)]

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """What `load_state` needs beside the seed so that `batch(step)` comes next; empty where there is no stream."""
        return {
            f"{number}/{name}": tensor
            for number, index in self._stream_places(step)
            for name, tensor in self._streams[number].state(index).items()
        }

    def load_state(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where `state(step)` was taken, on any number of processes.

        Raises:
            UserError: it is of other settings.
        """
        for number, index in self._stream_places(step):
            prefix = f"{number}/"
            own = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
            self._streams[number].load_state(index, own)

    def close(self) -> None:
        """End what reads ahead."""
        for stream in self._streams.values():
            stream.close()

    def _stream_places(self, step: int) -> list[tuple[int, int]]:
        """The number of each stream, and the index of the first window that `step` or a later one takes of it."""
        counts = self._mixture.counts(step * self._batch_size)
        return [(number, counts[number]) for number in self._streams]

    def _turns(self, step: int) -> list[Turn]:
        return [self._mixture.turn(step * self._batch_size + row) for row in self._rows]


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
