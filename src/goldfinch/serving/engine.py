"""Many requests on one model: chunks of prompts are read between the steps of all generations.

One thread does all work on the model, so that contexts have one owner; others give it requests and get events.
"""

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable

from goldfinch.inference.batch import Batch
from goldfinch.inference.context import Context
from goldfinch.inference.generation import Generation, GenerationState
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.inference.sampling import Sampling
from goldfinch.serving.prefix_cache import PrefixCache

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
class Answer:
    """The end of a request that was answered, or cancelled while it was."""

    generation: Generation
    prompt: PromptCounts


class QueueFullError(Exception):
    """Too many requests wait, or the engine is about to end."""


class RequestCancelledError(Exception):
    """Nobody waits for the answer any more, of which nothing was written yet."""


Event = str | Answer | Exception
"""Of a request: pieces of text that are certain, then an `Answer` or what went wrong."""


class Job:
    """One generation after a prompt.

    Args:
        ids: the prompt, at least one token.
        sampling: how tokens are sampled, and where generation stops.
        max_tokens: maximum number of tokens.
        on_event: called in the engine's thread; it must return at once, and must not fail.
    """

    def __init__(self, ids: list[int], sampling: Sampling, max_tokens: int, on_event: Callable[[Event], None]) -> None:
        self.ids, self.sampling, self.max_tokens, self.on_event = ids, sampling, max_tokens, on_event
        self.is_cancelled = False
        self.context: Context | None = None
        """What was read of the prompt; None before the first chunk."""
        self.num_cached = self.num_replayed = 0

    def cancel(self) -> None:
        """Stop before the next chunk or step; from any thread, any number of times."""
        self.is_cancelled = True

    @property
    def counts(self) -> PromptCounts:
        """Of the prompt."""
        cached, replayed = self.num_cached, self.num_replayed
        return PromptCounts(cached=cached, replayed=replayed, computed=len(self.ids) - cached)


class Engine:
    """The thread that owns the contexts.

    Args:
        lm: the model.
        max_cached_bytes: of contexts that are kept for later prompts which begin like them.
    """

    def __init__(self, lm: LanguageModel, max_cached_bytes: int) -> None:
        self.lm = lm
        self._prefixes = PrefixCache(max_cached_bytes)
        self._arriving: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._reading: deque[Job] = deque()
        self._running: dict[GenerationState, Job] = {}
        self._batch = Batch()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._is_stopping = False

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
        """Finish what was submitted, for at most `timeout` seconds, and end."""
        self._is_stopping = True
        self._arriving.put(None)
        self._thread.join(timeout)

    def submit(self, job: Job) -> None:
        """Give the engine a job; from any thread.

        Raises:
            QueueFullError: too many wait, or `stop` was called.
        """
        with self._lock:
            if self._num_waiting >= MAX_WAITING or self._is_stopping:
                raise QueueFullError
            self._num_waiting += 1
        self._arriving.put(job)

    def _work(self) -> None:
        while True:
            self._receive()
            if self._is_idle and self._is_stopping:
                return
            self._drop_cancelled()
            if self._reading and len(self._running) < MAX_RUNNING:
                self._read_chunk(self._reading.popleft())
            self._step()

    @property
    def _is_idle(self) -> bool:
        return not (self._reading or self._running)

    def _receive(self) -> None:
        """Take what has arrived; wait for it if there is nothing else to do."""
        must_wait = self._is_idle and not self._is_stopping
        while must_wait or not self._arriving.empty():
            job = self._arriving.get()
            must_wait = False
            if job is not None:
                self._reading.append(job)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._reading if job.is_cancelled]:
            self._reading.remove(job)
            self._leave_queue()
            job.on_event(RequestCancelledError())
        for generation in [generation for generation, job in self._running.items() if job.is_cancelled]:
            self._batch.remove(generation)
            self._finish(generation)

    def _leave_queue(self) -> None:
        with self._lock:
            self._num_waiting -= 1

    def _read_chunk(self, job: Job) -> None:
        """Read some of a prompt; then it is the others' turn or, after its end, the generation begins."""
        try:
            context = job.context = job.context or self._open_context(job)
            chunk = job.ids[len(context) : len(context) + CHUNK_SIZE]
            if chunk:
                context.read(chunk)
            if len(context) < len(job.ids):
                self._reading.append(job)
                return
            context.snapshot()  # so that the prompt can be asked again at no cost
            self._prefixes.add(context.fork())
            generation = context.generation_state(job.sampling, job.max_tokens)
            piece = self._batch.add(generation)
        except Exception as error:
            self._leave_queue()
            job.on_event(error)
            return
        self._leave_queue()
        self._running[generation] = job
        self._advance(generation, piece)

    def _open_context(self, job: Job) -> Context:
        """A context with as much of the prompt as is known."""
        found = self._prefixes.find(job.ids)
        if found is None:
            return self.lm.context()
        job.num_cached, job.num_replayed = len(found.context), found.num_replayed
        return found.context

    def _step(self) -> None:
        """One token of each generation."""
        try:
            pieces = self._batch.step()
        except Exception as error:
            for job in self._running.values():
                job.on_event(error)
            self._running.clear()
            return
        for generation, piece in pieces:
            self._advance(generation, piece)

    def _advance(self, generation: GenerationState, piece: str) -> None:
        if piece:
            self._running[generation].on_event(piece)
        if generation.finish_reason is not None or generation.error is not None:
            self._finish(generation)

    def _finish(self, generation: GenerationState) -> None:
        job = self._running.pop(generation)
        if job.context is not None:
            self._prefixes.add(job.context)
        job.on_event(generation.error or Answer(generation.result(), job.counts))
