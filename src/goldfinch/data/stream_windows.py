"""Training windows of a stream: one order, whatever the number of workers and processes."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from goldfinch.data.stream import Position, Stream, StreamReader
from goldfinch.data.tokenizing import ID, Tokens, tokenized
from goldfinch.errors import UserError


@dataclass(frozen=True)
class _Place:
    """All that decides what comes next. Arrays are never written to, so that a place costs next to nothing."""

    index: int = 0  # of the window that is drawn next
    waiting: tuple[np.ndarray, ...] = ()
    rest: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ID))
    position: Position | None = None  # of the first document whose tokens are neither in windows nor in `rest`


class StreamWindows:
    """The windows of a stream in a random order without end.

    Documents in the stream's order, each with the end of text, are one row of tokens, cut into windows of T + 1 that
    share a token with their neighbours, as those of a stored dataset. `Stream.shuffle_windows` of them wait; each turn
    draws one of these at random, and the next of the row takes its place. At its end the stream begins again.

    Every process reads and tokenises the whole stream and uses its share of the windows: with many of them, or where
    tokenising is slower than training, prepare the data first.

    Args:
        stream: what to read.
        tokenizer: a tokenizer.json file.
        length: T, targets in a window.
        seed: of the order, 0 <= seed < 2**64.
        number: another number, another order of the same seed, 0 <= number < 2**64.
        workers: processes that tokenise ahead; 0: none.
    """

    windows = None
    """How many make an epoch is not known."""

    def __init__(
        self, stream: Stream, tokenizer: Path, length: int, seed: int, number: int = 0, workers: int = 0
    ) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._length = length
        self._key = np.array([seed, number], dtype=np.uint64)
        self._workers = workers
        self._marks: dict[int, _Place] = {}
        self._set(_Place())

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the order, from 0 on: (T + 1,) int32. Those before it are gone."""
        self._pass(index)
        return self._draw()

    def place(self, index: int) -> str:
        """Where that window is to be found."""
        return f"{self._stream.dataset}, window {index} of the stream"

    def seek(self, index: int) -> None:
        """Go to `index`, where a batch begins; back only to the last two places that were sought.

        Raises:
            ValueError: that place is gone.
        """
        if index < self._index and index in self._marks:
            self._go_to(self._marks[index])
        self._pass(index)
        self._marks[index] = _Place(self._index, tuple(self._waiting), self._rest, self._position)
        self._marks = {index: self._marks[index] for index in sorted(self._marks)[-2:]}

    def state(self, index: int) -> dict[str, Tensor]:
        """What `load_state` needs to go on with window `index`, wherever documents and windows are cut there.

        Raises:
            ValueError: that place is gone; see `seek`.
        """
        self.seek(index)
        place = self._marks[index]
        waiting = np.stack(place.waiting) if place.waiting else np.empty((0, self._length + 1), dtype=ID)
        position = json.dumps({"index": place.index, "position": place.position}).encode()
        tensors = {
            "waiting": torch.from_numpy(waiting),
            "rest": torch.from_numpy(place.rest.copy()),
            "position": torch.frombuffer(bytearray(position), dtype=torch.uint8),
        }
        # Nothing waits before the first window; checkpoints know no empty tensors.
        return {name: tensor for name, tensor in tensors.items() if tensor.numel()}

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Go on where `state(index)` was taken.

        Raises:
            UserError: it is of another place or of other settings.
        """
        try:
            stored = json.loads(state["position"].numpy().tobytes())
            start = stored["position"] is None
            waiting = np.empty((0, self._length + 1), ID) if start else state["waiting"].numpy()
            rest = np.empty(0, ID) if start else state["rest"].numpy()
            fits = (
                stored["index"] == index
                and waiting.shape in ((0, self._length + 1), (self._stream.shuffle_windows, self._length + 1))
                and rest.ndim == 1
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"the checkpoint does not say where the stream {self._stream.dataset} was") from error
        if not fits:
            raise UserError(
                f"the stream {self._stream.dataset} goes on only with the settings it began with: "
                "the same --data, --context, --batch-size and shuffle_windows"
            )
        self._go_to(_Place(index, tuple(waiting), rest, stored["position"]))

    def close(self) -> None:
        """End what reads ahead."""
        self._tokens.close()

    def _go_to(self, place: _Place) -> None:
        self.close()
        self._set(place)

    def _set(self, place: _Place) -> None:
        self._index, self._waiting, self._rest = place.index, list(place.waiting), place.rest
        self._position = place.position
        open_reader = partial(StreamReader, self._stream, place.position)
        self._tokens = tokenized(open_reader, self._tokenizer, self._workers)

    def _pass(self, index: int) -> None:
        if index < self._index:
            raise ValueError(f"window {index} of the stream {self._stream.dataset} is gone: {self._index} is the next")
        while self._index < index:
            self._draw()

    def _draw(self) -> np.ndarray:
        while len(self._waiting) < self._stream.shuffle_windows:
            self._waiting.append(self._cut())
        # Philox's raw numbers, which no version of NumPy changes; one block of them for each window.
        number = np.random.Philox(key=self._key, counter=self._index).random_raw()
        slot = number % len(self._waiting)
        window, self._waiting[slot] = self._waiting[slot], self._cut()
        self._index += 1
        return window

    def _cut(self) -> np.ndarray:
        """The next window of the row."""
        while len(self._rest) <= self._length:
            tokens: Tokens = next(self._tokens)
            self._rest = np.concatenate((self._rest, tokens.ids))
            self._position = tokens.position
        window = self._rest[: self._length + 1].copy()
        self._rest = self._rest[self._length :]
        return window
