"""Many requests on one model: chunks of prompts are read between the steps of all generations.

One thread does all work on the model, so that contexts have one owner; others give it requests and get events.
"""

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from goldfinch.errors import UserError
from goldfinch.inference.batch import Batch
from goldfinch.inference.context import Context
from goldfinch.inference.generation import Generation, GenerationState
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.inference.sampling import Sampling
from goldfinch.serving.prefixes import PrefixCache

MAX_WAITING = 256
"""Requests that wait for their turn; more are refused."""
MAX_RUNNING = 16
"""Generations that step together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """Where the states after a prompt came from."""

    cached: int
    """Tokens that were in memory."""
    replayed: int
    """Tokens of these that recurrent layers read again, from the nearest snapshot."""
    computed: int
    """Tokens that were read."""

    @property
    def total(self) -> int:
        """Tokens of the prompt."""
        return self.cached + self.computed


@dataclasses.dataclass(frozen=True)
class Event:
    """What a request tells whoever waits for it."""

    kind: Literal["started", "piece", "done", "failed"]
    piece: str = ""
    """Text that is certain now."""
    counts: PromptCounts | None = None
    """Of the prompt, once it is read."""
    generation: Generation | None = None
    """All of it, in the end."""
    error: Exception | None = None


class Job:
    """One generation after a prompt.

    Args:
        ids: the prompt, at least one token.
        sampling: how tokens are sampled, and where generation stops.
        max_tokens: maximum number of tokens.
        logprobs: as for `Context.stream`.
        listener: called in the engine's thread for each event; it must return at once.
    """

    def __init__(
        self,
        ids: list[int],
        sampling: Sampling,
        max_tokens: int,
        logprobs: int | None,
        listener: Callable[[Event], None],
    ) -> None:
        self.ids, self.sampling, self.max_tokens, self.logprobs = ids, sampling, max_tokens, logprobs
        self.tell = listener
        self.is_cancelled = False
        self.context: Context | None = None
        self.counts: PromptCounts | None = None

    def cancel(self) -> None:
        """Stop before the next chunk or step; from any thread, any number of times."""
        self.is_cancelled = True


class QueueFullError(Exception):
    """Too many requests wait."""


class Engine:
    """The thread that owns the contexts.

    Args:
        lm: the model.
        max_cached_bytes: of contexts that are kept for later prompts which begin like them.
    """

    def __init__(self, lm: LanguageModel, max_cached_bytes: int) -> None:
        self.lm = lm
        self.prefixes = PrefixCache(max_cached_bytes)
        self._arriving: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._reading: deque[Job] = deque()
        self._running: dict[GenerationState, Job] = {}
        self._batch = Batch()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._stopping = False

    @property
    def num_running(self) -> int:
        """Answers that are being written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests whose prompts wait or are being read."""
        return self._num_waiting

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what runs, for at most `timeout` seconds, and end."""
        self._stopping = True
        self._arriving.put(None)
        self._thread.join(timeout)

    def submit(self, job: Job) -> None:
        """Give the engine a job; from any thread.

        Raises:
            QueueFullError: too many wait.
        """
        with self._lock:
            if self._num_waiting >= MAX_WAITING or self._stopping:
                raise QueueFullError
            self._num_waiting += 1
        self._arriving.put(job)

    def _work(self) -> None:
        while True:
            busy = bool(self._reading or self._running)
            while not (busy and self._arriving.empty()):
                job = self._arriving.get()
                if job is None:
                    if self._stopping and not (self._reading or self._running):
                        return
                    break
                self._reading.append(job)
                busy = True
            self._step()
            if self._stopping and not (self._reading or self._running):
                return

    def _step(self) -> None:
        """One chunk of one prompt, and one token of each generation."""
        if self._reading and len(self._running) < MAX_RUNNING:
            job = self._reading.popleft()
            try:
                self._read_some(job)
            except Exception as error:
                self._leave(job, Event("failed", error=error))
        for generation in [each for each, job in self._running.items() if job.is_cancelled]:
            self._batch.remove(generation)
            self._finish(generation)
        if not len(self._batch):
            return
        try:
            pieces = self._batch.step()
        except Exception as error:
            for job in self._running.values():
                job.tell(Event("failed", error=error))
            self._running.clear()
            return
        for generation, piece in pieces:
            self._advance(generation, piece)

    def _read_some(self, job: Job) -> None:
        if job.is_cancelled:
            self._leave(job, None)
            return
        if job.context is None:
            found = self.prefixes.take(job.ids)
            job.context = found.context if found else self.lm.context()
            cached, replayed = (found.length, found.replayed) if found else (0, 0)
            job.counts = PromptCounts(cached=cached, replayed=replayed, computed=len(job.ids) - cached)
        start = len(job.context)
        rest = job.ids[start : start + CHUNK_SIZE]
        if rest:
            job.context.read(rest)
        if len(job.context) < len(job.ids):
            self._reading.append(job)  # the others' turn
            return
        job.context.snapshot()  # so that the prompt can be asked again at no cost
        self.prefixes.add(job.context.fork())
        generation = job.context.generation_state(job.sampling, job.max_tokens, job.logprobs)
        self._leave(job, Event("started", counts=job.counts))
        self._running[generation] = job
        self._advance(generation, self._batch.add(generation))

    def _leave(self, job: Job, event: Event | None) -> None:
        """A job no longer waits."""
        with self._lock:
            self._num_waiting -= 1
        if event is not None:
            job.tell(event)

    def _advance(self, generation: GenerationState, piece: str) -> None:
        if piece:
            self._running[generation].tell(Event("piece", piece))
        if generation.finish_reason is not None:
            self._finish(generation)

    def _finish(self, generation: GenerationState) -> None:
        job = self._running.pop(generation)
        if job.context is not None:
            self.prefixes.add(job.context)
        job.tell(Event("done", counts=job.counts, generation=generation.result()))


def check_prompt(lm: LanguageModel, ids: list[int]) -> None:
    """Raise a UserError if there is no prompt."""
    if not ids:
        raise UserError("the prompt is empty: give at least one token")
    lm.encode(ids)
