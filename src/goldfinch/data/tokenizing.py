"""Tokenising a stream ahead of the training loop, in worker processes.

Processes, because the World tokenizer holds the GIL while it encodes. Each worker is an ordinary program,

    python -m goldfinch.data.tokenizing TOKENIZER.json

that reads documents from its standard input and writes their tokens to its standard output until its input ends.

Why not `concurrent.futures.ProcessPoolExecutor`: its workers are forked, which can hang a process that has threads (a
training process always has some), or spawned, which runs the caller's main module again and so requires an
`if __name__ == "__main__"` of every program that uses this library. Its workers can outlive a parent that is killed,
while a program whose input is closed ends. And it pickles every message, where plain JSON and integers will do.
"""

import atexit
import contextlib
import itertools
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from goldfinch.data.stream import Position, StreamReader
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.errors import UserError

CHUNK_CHARACTERS = 1 << 18  # of documents that are tokenised together
ID = np.dtype("<i4")
_LENGTH = struct.Struct("<Q")


class Tokens(NamedTuple):
    """The tokens of some documents, and the position in the stream after them."""

    ids: np.ndarray
    """(n,) int32; each document ends with the end of text."""
    position: Position


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Encode documents one after the other, each followed by the end of text: (n,) int32."""
    row: list[int] = []
    for ids in tokenizer.encode_batch(texts):
        row += ids
        row.append(tokenizer.end_of_text)
    return np.array(row, dtype=ID)


def read_chunk(reader: StreamReader, characters: int) -> tuple[list[str], Position]:
    """Read documents up to this many characters; returns them and the position after them."""
    texts, length = [], 0
    while length < characters:
        texts.append(next(reader))
        length += len(texts[-1])
    return texts, reader.position()


def tokenized(
    open_reader: Callable[[], StreamReader], tokenizer: Path, num_workers: int
) -> Generator[Tokens, None, None]:
    """The tokens of a stream, in its order whatever the number of workers; close the generator to end them.

    Args:
        open_reader: opens the documents.
        tokenizer: a tokenizer.json file.
        num_workers: worker processes, each up to two chunks ahead; 0: tokenise here, on demand.
    """
    if num_workers:
        with contextlib.closing(_TokenizerPool(open_reader, tokenizer, num_workers)) as ahead:
            yield from ahead
    else:
        reader, loaded = open_reader(), load_tokenizer(tokenizer)
        while True:
            texts, position = read_chunk(reader, CHUNK_CHARACTERS)
            yield Tokens(tokenize(texts, loaded), position)


class _TokenizerPool:
    """Worker processes, each with a thread that reads documents for it, one thread at a time."""

    def __init__(self, open_reader: Callable[[], StreamReader], tokenizer: Path, num_workers: int) -> None:
        self._open_reader = open_reader
        self._reader: StreamReader | None = None
        self._reading = threading.Lock()
        self._chunks = 0  # read so far, under the lock
        self._closed = False
        self._free_slots = threading.Semaphore(2 * num_workers)
        self._done: dict[int, Tokens | Exception] = {}
        self._changed = threading.Condition()
        self._workers = [_Worker(tokenizer) for _ in range(num_workers)]
        # Daemons: a thread that waits for the network must not keep the program from ending.
        self._threads = [threading.Thread(target=self._work, args=(each,), daemon=True) for each in self._workers]
        for thread in self._threads:
            thread.start()
        # Before the interpreter stops daemon threads, which may hold locks.
        atexit.register(self.close)

    def __iter__(self) -> Iterator[Tokens]:
        for number in itertools.count():
            with self._changed:
                while number not in self._done:
                    self._changed.wait()
                tokens = self._done.pop(number)
            if isinstance(tokens, Exception):
                raise tokens
            self._free_slots.release()
            yield tokens

    def close(self) -> None:
        """End the threads and their processes; may be called more than once."""
        atexit.unregister(self.close)
        self._closed = True
        for worker in self._workers:
            worker.kill()  # its answer is no longer needed
        for _ in self._threads:
            self._free_slots.release()
        while self._threads:
            self._threads.pop().join(timeout=10)
        while self._workers:
            self._workers.pop().close()

    def _work(self, worker: "_Worker") -> None:
        number = 0
        while self._free_slots.acquire() and not self._closed:
            result: Tokens | Exception
            try:
                with self._reading:
                    number, self._chunks = self._chunks, self._chunks + 1
                    texts, position = self._read()
                result = Tokens(worker.tokenize(texts), position)
            except Exception as error:  # raised again where these tokens are requested
                result = error
            with self._changed:
                self._done[number] = result
                self._changed.notify_all()

    def _read(self) -> tuple[list[str], Position]:
        if self._closed:
            raise EOFError("the stream is closed")
        try:
            self._reader = self._reader or self._open_reader()
            return read_chunk(self._reader, CHUNK_CHARACTERS)
        except Exception:
            self._closed = True
            raise


class _Worker:
    """A process that tokenises."""

    def __init__(self, tokenizer: Path) -> None:
        # The same packages as here, but none from the working directory.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "goldfinch.data.tokenizing", str(tokenizer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # so that Ctrl-C reaches only us: the run saves first
        )

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """`tokenize` in the process.

        Raises:
            UserError: the process has died.
        """
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            _write(process.stdin, json.dumps(texts).encode())
            return np.frombuffer(_read(process.stdout), dtype=ID)
        except (OSError, EOFError, ValueError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            raise UserError(
                f"a tokenizer process has died (exit code {process.returncode}); "
                "continue with --resume, and with --num-workers 0 if it happens again"
            ) from error

    def kill(self) -> None:
        """Kill the process; a `tokenize` that waits for its answer raises UserError."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        with contextlib.suppress(OSError), self._process:  # closes its pipes, which ends it, and waits
            pass


def _write(file: IO[bytes], message: bytes) -> None:
    file.write(_LENGTH.pack(len(message)) + message)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    header = file.read(_LENGTH.size)
    message = file.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
    if not message:
        raise EOFError
    return message


def main(tokenizer: Path) -> None:
    """Tokenise documents from standard input until it ends."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # prints would corrupt the answers
    loaded = load_tokenizer(tokenizer)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _write(answers, tokenize(json.loads(_read(questions)), loaded).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
