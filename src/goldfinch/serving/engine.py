"""Many requests on one model: pieces of prompts are read between the steps of all generations.

One thread does all work on the model, so that contexts have one owner; others give it tasks and get events.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from goldfinch import malloc
from goldfinch.cache.key_cache import bytes_per_token
from goldfinch.errors import UserError
from goldfinch.inference.batch import Batch
from goldfinch.inference.generation import GenerationState
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.memory_usage import nbytes_together
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.model.accounting import account
from goldfinch.serving.context_source import ContextSource
from goldfinch.serving.radix_tree import Ids
from goldfinch.serving.statistics import EngineStatus, Statistics
from goldfinch.serving.tasks import GenerationTask, RequestCancelledError, Task

_LOGGER = logging.getLogger("goldfinch")
MAX_WAITING = 256
"""Tasks that have not begun; more are refused."""
CHUNK_BETWEEN_STEPS = 256
"""Tokens that are read at once while others generate: what their next token waits for."""
ENDS_PER_TRIM = 64
"""Tasks that end until the holes that they left in the memory are given back to the system."""
STEPS_PER_CHECK = 64
"""Steps after which memory is measured again."""
STATES_PER_CONTEXT = 3
"""States that a context is expected to hold: at its end, after its prompt, and at the end of a block."""


class QueueFullError(Exception):
    """Too many tasks wait."""


class StoppingError(Exception):
    """The engine finishes what it has, and takes nothing new."""


class TooLargeError(UserError):
    """A text needs more memory than there is."""


class Engine:
    """The thread that owns the contexts.

    Args:
        lm: the model.
        max_bytes: memory for all contexts, with those that are kept for later prompts.
        latents: how compressed keys are stored, as in `LanguageModel.context`.
    """

    def __init__(self, lm: LanguageModel, max_bytes: int, latents: str | None = None) -> None:
        self.lm, self.max_bytes = lm, max_bytes
        self.statistics = Statistics()
        self.contexts = ContextSource(lm, latents, max_bytes // 2, self.statistics)
        self.bytes_per_token = bytes_per_token(lm.config, self.contexts.new().sequence.key_cache.format)
        """Of ids and latents in new contexts."""
        self.costs = account(lm.config)
        """Of the model."""
        self._condition = threading.Condition()
        self._waiting: deque[Task] = deque()  # used with the condition's lock only, as is the next
        self._is_stopping = False
        self._reading: dict[Task, Iterator[int]] = {}
        self._generating: dict[GenerationState, GenerationTask] = {}
        self._paused: deque[GenerationState] = deque()
        self._batch = Batch()
        self._is_full = False
        """Whether the first that waits needs more memory than there is, as long as nothing ends."""
        self._steps_to_check, self._ends_to_trim = STEPS_PER_CHECK, ENDS_PER_TRIM
        scale = lm.model.dtype.itemsize / 2  # costs are those of bfloat16
        # Keys and values of attention layers without latents are among them.
        self._needed_per_token = self.costs.cache_bytes_per_token * scale
        self._needed_per_context = self.costs.state_bytes * scale * STATES_PER_CONTEXT
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # From any thread.

    @property
    def num_running(self) -> int:
        """Requests that are being read or answered."""
        return len(self._reading) + len({*self._generating.values()})

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def status(self) -> EngineStatus:
        """What it does now, and has done."""
        return EngineStatus(
            statistics=self.statistics.copy(),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_kept=len(self.contexts.cache),
            max_bytes=self.max_bytes,
            bytes_per_token=self.bytes_per_token,
        )

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what was submitted, for at most `timeout` seconds, and end."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        self._thread.join(timeout)

    def submit(self, task: Task) -> None:
        """Give the engine a task.

        Raises:
            QueueFullError: too many wait.
            StoppingError: `stop` was called.
        """
        with self._condition:
            if self._is_stopping:
                raise StoppingError
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFullError
            self._waiting.append(task)
            self._condition.notify()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    # For tasks, in the engine's thread.

    @property
    def chunk_size(self) -> int:
        """Tokens to read before it is the others' turn."""
        return CHUNK_BETWEEN_STEPS if self._generating else CHUNK_SIZE

    def tensor(self, ids: Ids) -> Tensor:
        """(T,) ids on the model's device."""
        return torch.from_numpy(ids).to(self.lm.model.device)

    def begin(self, generation: GenerationState, task: GenerationTask) -> None:
        """Generate together with all others, from now on."""
        self._generating[generation] = task
        self._share_budget()
        self._advance(generation, self._batch.add(generation))

    def _share_budget(self) -> None:
        """Of expanded keys and values: half of the memory, for all that generate together."""
        self.contexts.budget = self.max_bytes // 2 // max(len(self._generating), 1)
        for generation in self._generating:
            if generation.sequence.key_value_cache is not None:
                generation.sequence.key_value_cache.budget = self.contexts.budget

    # The rest.

    def _work(self) -> None:
        try:
            while self._wait():
                self._drop_cancelled()
                self._admit()
                if self._reading:
                    self._continue_reading(min(self._reading, key=lambda task: task.num_computed))
                self._step()
        except Exception as error:  # a bug of ours, after which nobody may wait for ever
            _LOGGER.exception("the engine has failed, and the server takes nothing new: start it again")
            with self._condition:
                self._is_stopping = True
            for task in {*self._waiting, *self._reading, *self._generating.values()}:
                task.on_event(error)

    @property
    def _is_idle(self) -> bool:
        return not (self._reading or self._generating)

    def _wait(self) -> bool:
        """Until there is something to do; False if there never will be."""
        with self._condition:
            while self._is_idle and not self._waiting:
                if self._is_stopping:
                    return False
                self._condition.wait()
        return True

    def _drop_cancelled(self) -> None:
        with self._condition:
            waiting = [task for task in self._waiting if task.is_cancelled]
            for task in waiting:
                self._waiting.remove(task)
            self._is_full &= not waiting
        for task in (*waiting, *(task for task in list(self._reading) if task.is_cancelled)):
            if self._reading.pop(task, None) is not None:
                self._is_full = False
            task.on_event(RequestCancelledError())
        for generation in [generation for generation, task in self._generating.items() if task.is_cancelled]:
            self._leave_batch(generation)
            self._end(generation)

    def _admit(self) -> None:
        """Begin what there is memory for, in the order of arrival."""
        while self._waiting and not self._is_full:
            task = self._waiting[0]
            try:
                needed = int(task.num_new_tokens(self) * self._needed_per_token + self._needed_per_context)
                if needed > self.max_bytes:
                    raise TooLargeError(
                        f"the text needs {needed:,} bytes of memory, and the server has {self.max_bytes:,}: give a "
                        "shorter one, or start the server with more --memory"
                    )
                if not self._make_room(needed) and not self._is_idle:
                    self._is_full = True
                    return
            except Exception as error:
                task.on_event(error)
            else:
                self._reading[task] = iter(task.run(self))
            with self._condition:
                self._waiting.popleft()

    def _continue_reading(self, task: Task) -> None:
        try:
            num_read = next(self._reading[task])
            task.num_computed += num_read
            self.statistics.tokens_by_owner[task.owner] += num_read
        except StopIteration:
            del self._reading[task]
            self._is_full = False
            self._count_end()
        except Exception as error:
            self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
        self._is_full = False
        self._reading.pop(task, None)
        for generation in [generation for generation, other in self._generating.items() if other is task]:
            del self._generating[generation]
            self._leave_batch(generation)
        task.on_event(error)

    def _step(self) -> None:
        """One token of each generation."""
        if not self._generating:
            return
        try:
            pieces = self._batch.step()
        except Exception as error:
            for task in {*self._generating.values()}:
                self._fail(task, error)
            return
        self.statistics.steps += 1
        for generation, piece in pieces:
            if generation in self._generating:  # it is not if another one of its task has just failed
                self._advance(generation, piece)
        self._steps_to_check -= 1
        if self._steps_to_check <= 0:
            self._check_memory()

    def _advance(self, generation: GenerationState, piece: str) -> None:
        task = self._generating[generation]
        self.statistics.tokens_by_owner[task.owner] += 1
        if generation.error is not None:
            self._fail(task, generation.error)
            return
        if piece:
            task.on_piece(generation, piece)
        if generation.finish_reason is not None:
            self._end(generation)

    def _end(self, generation: GenerationState) -> None:
        self._generating.pop(generation).on_end(self, generation)
        self._is_full = False
        self._share_budget()
        if self._paused:
            self._check_memory()

    def _leave_batch(self, generation: GenerationState) -> None:
        if generation in self._paused:
            self._paused.remove(generation)
            self._batch.resume(generation)
        if generation in self._batch:
            self._batch.remove(generation)

    # Memory.

    def _count_end(self) -> None:
        """Keep the process from growing: contexts of all sizes come and go."""
        self._ends_to_trim -= 1
        if self._ends_to_trim <= 0:
            self._ends_to_trim = ENDS_PER_TRIM
            malloc.trim()

    def measure(self) -> int:
        """Bytes of all contexts, what several share counted once."""
        sequences = [
            *(context.sequence for context in self.contexts.cache),
            *(task.context.sequence for task in self._reading if task.context is not None),
            *(generation.sequence for generation in self._generating),
        ]
        self.statistics.nbytes = nbytes_together(tensor for each in sequences for tensor in each.tensors())
        return self.statistics.nbytes

    def _make_room(self, needed: int) -> bool:
        """Take memory from contexts that are kept until `needed` bytes are free; whether they are."""
        while (missing := self.measure() + needed - self.max_bytes) > 0:
            if not self.contexts.cache.reclaim(missing):
                return False
            self.statistics.num_reclaimed += 1
        return True

    def _check_memory(self) -> None:
        """Put the youngest generations aside if all together have outgrown the memory, and let them come back.

        What is put aside keeps its state and its latents, which are small; keys and values are rebuilt.
        """
        self._steps_to_check = STEPS_PER_CHECK
        while not self._make_room(0) and len(self._batch) > 1:
            youngest = next(each for each in reversed(self._generating) if each not in self._paused)
            self._batch.pause(youngest)
            self._paused.append(youngest)
            self.statistics.num_paused += 1
            if youngest.sequence.key_value_cache is not None:
                youngest.sequence.key_value_cache.clear()
        while self._paused and (not len(self._batch) or self.statistics.nbytes < self.max_bytes * 3 // 4):
            self._batch.resume(self._paused.popleft())
            self.measure()
            if len(self._batch) > 1:
                break  # one at a time: its keys and values are rebuilt by its next step
