"""Tokenising a stream, ahead of the training loop, in processes of their own.

Processes, because the World tokenizer keeps Python to itself while it encodes. Each is an ordinary program,

    python -m goldfinch.data.tokenizing TOKENIZER.json

that reads documents from its standard input and writes their tokens to its standard output until there is nothing more
to read. So it ends with us, whatever ends us; nothing is pickled, and whoever uses this as a library needs no
`if __name__ == "__main__"`.
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

# Documents that are tokenised together, in characters.
CHUNK = 1 << 18
ID = np.dtype("<i4")
_LENGTH = struct.Struct("<Q")


class Tokens(NamedTuple):
    """The tokens of some documents, and where the stream goes on after them."""

    ids: np.ndarray
    """(n,) int32; each document ends with the end of text."""
    position: Position


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of documents, one after the other, each with the end of text: (n,) int32."""
    row: list[int] = []
    for ids in tokenizer.encode_batch(texts):
        row += ids
        row.append(tokenizer.end_of_text)
    return np.array(row, dtype=ID)


def read_chunk(reader: StreamReader, characters: int) -> tuple[list[str], Position]:
    """The next documents, until they have this many characters, and the position after them."""
    texts, length = [], 0
    while length < characters:
        texts.append(next(reader))
        length += len(texts[-1])
    return texts, reader.position()


def tokenized(open_reader: Callable[[], StreamReader], tokenizer: Path, workers: int) -> Generator[Tokens, None, None]:
    """The tokens of a stream in its order, whatever the number of workers; close it to end them.

    Args:
        open_reader: opens the documents.
        tokenizer: a tokenizer.json file.
        workers: processes that tokenise ahead, two chunks each; 0: here, when tokens are asked for.
    """
    if workers:
        with contextlib.closing(_Ahead(open_reader, tokenizer, workers)) as ahead:
            yield from ahead
    else:
        reader, loaded = open_reader(), load_tokenizer(tokenizer)
        while True:
            texts, position = read_chunk(reader, CHUNK)
            yield Tokens(tokenize(texts, loaded), position)


class _Ahead:
    """Threads that take turns reading, each with a process that tokenises what it has read."""

    def __init__(self, open_reader: Callable[[], StreamReader], tokenizer: Path, workers: int) -> None:
        self._open_reader = open_reader
        self._reader: StreamReader | None = None
        self._reading = threading.Lock()
        self._chunks = 0  # read so far, under the lock
        self._closed = False
        self._room = threading.Semaphore(2 * workers)
        self._done: dict[int, Tokens | Exception] = {}
        self._news = threading.Condition()
        self._workers = [_Worker(tokenizer) for _ in range(workers)]
        # Daemons: one that waits for the network does not keep the program from ending.
        self._threads = [threading.Thread(target=self._work, args=(each,), daemon=True) for each in self._workers]
        for thread in self._threads:
            thread.start()
        # Before the interpreter stops daemons where they stand, with the locks that they hold.
        atexit.register(self.close)

    def __iter__(self) -> Iterator[Tokens]:
        for number in itertools.count():
            with self._news:
                while number not in self._done:
                    self._news.wait()
                tokens = self._done.pop(number)
            if isinstance(tokens, Exception):
                raise tokens
            self._room.release()
            yield tokens

    def close(self) -> None:
        """End the threads and their processes; more than once does no harm."""
        atexit.unregister(self.close)
        self._closed = True
        for worker in self._workers:
            worker.kill()  # nobody waits for its answer any more
        for _ in self._threads:
            self._room.release()
        while self._threads:
            self._threads.pop().join(timeout=10)
        while self._workers:
            self._workers.pop().close()

    def _work(self, worker: "_Worker") -> None:
        number = 0
        while self._room.acquire() and not self._closed:
            result: Tokens | Exception
            try:
                with self._reading:
                    number, self._chunks = self._chunks, self._chunks + 1
                    texts, position = self._read()
                result = Tokens(worker.tokenize(texts), position)
            except Exception as error:  # raised again where these tokens are asked for
                result = error
            with self._news:
                self._done[number] = result
                self._news.notify_all()

    def _read(self) -> tuple[list[str], Position]:
        if self._closed:
            raise EOFError("the stream is closed")
        try:
            self._reader = self._reader or self._open_reader()
            return read_chunk(self._reader, CHUNK)
        except Exception:
            self._closed = True
            raise


class _Worker:
    """A process that tokenises."""

    def __init__(self, tokenizer: Path) -> None:
        # The same packages as here, but not those that happen to lie in the working directory.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "goldfinch.data.tokenizing", str(tokenizer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C is for us: the run saves first
        )

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """`tokenize` over there.

        Raises:
            UserError: the process is dead.
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
                f"a process that tokenises has ended (exit code {process.returncode}); "
                "go on with --resume, or with --num-workers 0 if it comes again"
            ) from error

    def kill(self) -> None:
        """Let it end now; a `tokenize` that waits for its answer raises UserError."""
        self._process.kill()

    def close(self) -> None:
        """End it; it is gone when the call returns."""
        with contextlib.suppress(OSError), self._process:  # closes its pipes, which ends it, and waits for it
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
    """Tokenise what is asked for on standard input until it ends."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints would garble the answers
    loaded = load_tokenizer(tokenizer)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _write(answers, tokenize(json.loads(_read(questions)), loaded).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
