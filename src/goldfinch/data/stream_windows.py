"""Training windows of a stream: one order, whatever the number of num_workers and processes."""

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
class _StreamState:
    """All that decides what comes next. Arrays are never written to, so keeping a state costs almost nothing."""

    index: int = 0  # of the next window
    buffer: tuple[np.ndarray, ...] = ()
    rest: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ID))
    position: Position | None = None  # of the first document whose tokens are not in `buffer` or `rest`


class StreamWindows:
    """The windows of a stream in an endless random order.

    1. Documents, each followed by the end of text, are concatenated and cut into windows of T + 1 tokens that share a
       token with their neighbours, as those of a stored dataset.
    2. `Stream.shuffle_windows` of them are buffered; each step draws one at random, and the next window replaces it.
    3. At its end the stream starts again.

    Every process reads and tokenises the whole stream and uses its share of the windows: with many processes, or if
    tokenising is slower than training, prepare the data instead.

    Args:
        stream: what to read.
        tokenizer: a tokenizer.json file.
        length: T, targets per window.
        seed: random seed, 0 <= seed < 2**64.
        number: selects one of several orders of the same seed, 0 <= number < 2**64.
        num_workers: processes that tokenise ahead; 0 for none.
    """

    num_windows = None
    """Unknown."""

    def __init__(
        self, stream: Stream, tokenizer: Path, length: int, seed: int, number: int = 0, num_workers: int = 0
    ) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._length = length
        self._key = np.array([seed, number], dtype=np.uint64)
        self._workers = num_workers
        self._saved: dict[int, _StreamState] = {}
        self._set(_StreamState())

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the order, from 0: (T + 1,) int32. Earlier ones are no longer available."""
        self._pass(index)
        return self._draw()

    has_answers = False

    def answers(self, index: int) -> np.ndarray:
        """The loss is on all tokens of a window: (T + 1,) bool."""
        return np.ones(self._length + 1, dtype=bool)

    def describe(self, index: int) -> str:
        """Where that window comes from."""
        return f"{self._stream.dataset}, window {index} of the stream"

    def seek(self, index: int) -> None:
        """Go to `index`, where a batch starts; backwards only to one of the last two such positions.

        Raises:
            ValueError: that position is no longer available.
        """
        if index < self._index and index in self._saved:
            self._go_to(self._saved[index])
        self._pass(index)
        self._saved[index] = _StreamState(self._index, tuple(self._buffer), self._rest, self._position)
        self._saved = {index: self._saved[index] for index in sorted(self._saved)[-2:]}

    def state(self, index: int) -> dict[str, Tensor]:
        """What `load_state` needs to continue with window `index`.

        Raises:
            ValueError: that position is no longer available; see `seek`.
        """
        self.seek(index)
        saved = self._saved[index]
        buffer = np.stack(saved.buffer) if saved.buffer else np.empty((0, self._length + 1), dtype=ID)
        position = json.dumps({"index": saved.index, "position": saved.position}).encode()
        tensors = {
            "buffer": torch.from_numpy(buffer),
            "rest": torch.from_numpy(saved.rest.copy()),
            "position": torch.frombuffer(bytearray(position), dtype=torch.uint8),
        }
        # The buffer is empty before the first window; checkpoints cannot hold empty tensors.
        return {name: tensor for name, tensor in tensors.items() if tensor.numel()}

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Continue from `state(index)`.

        Raises:
            UserError: the state is of another position or of other settings.
        """
        try:
            stored = json.loads(state["position"].numpy().tobytes())
            start = stored["position"] is None
            buffer = np.empty((0, self._length + 1), ID) if start else state["buffer"].numpy()
            rest = np.empty(0, ID) if start else state["rest"].numpy()
            fits = (
                stored["index"] == index
                and buffer.shape in ((0, self._length + 1), (self._stream.shuffle_windows, self._length + 1))
                and rest.ndim == 1
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"the checkpoint has no position of the stream {self._stream.dataset}") from error
        if not fits:
            raise UserError(
                f"the stream {self._stream.dataset} can only be resumed with the same settings: "
                "--data, --sequence-length, --batch-size and shuffle_windows"
            )
        self._go_to(_StreamState(index, tuple(buffer), rest, stored["position"]))

    def close(self) -> None:
        """Stop reading ahead."""
        self._tokens.close()

    def _go_to(self, state: _StreamState) -> None:
        self.close()
        self._set(state)

    def _set(self, state: _StreamState) -> None:
        self._index, self._buffer, self._rest = state.index, list(state.buffer), state.rest
        self._position = state.position
        open_reader = partial(StreamReader, self._stream, state.position)
        self._tokens = tokenized(open_reader, self._tokenizer, self._workers)

    def _pass(self, index: int) -> None:
        if index < self._index:
            raise ValueError(
                f"window {index} of the stream {self._stream.dataset} is gone: the next one is {self._index}"
            )
        while self._index < index:
            self._draw()

    def _draw(self) -> np.ndarray:
        while len(self._buffer) < self._stream.shuffle_windows:
            self._buffer.append(self._cut())
        # Raw numbers of Philox, which NumPy guarantees; one block for each window.
        number = np.random.Philox(key=self._key, counter=self._index).random_raw()
        slot = number % len(self._buffer)
        window, self._buffer[slot] = self._buffer[slot], self._cut()
        self._index += 1
        return window

    def _cut(self) -> np.ndarray:
        """The next window of the stream, in order."""
        while len(self._rest) <= self._length:
            tokens: Tokens = next(self._tokens)
            self._rest = np.concatenate((self._rest, tokens.ids))
            self._position = tokens.position
        window = self._rest[: self._length + 1].copy()
        self._rest = self._rest[self._length :]
        return window
