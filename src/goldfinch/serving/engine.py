"""Many requests on one model: pieces of prompts are read between the steps of all generations.

One thread does all work on the model, so that contexts have one owner; others give it tasks and get events.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from goldfinch.cache.key_cache import bytes_per_token
from goldfinch.devices import dtype_name
from goldfinch.errors import UserError
from goldfinch.files import FileVersion
from goldfinch.inference.batch import Batch
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import read_description
from goldfinch.inference.generation import GenerationState
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.memory_usage import nbytes_together
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.model.accounting import account
from goldfinch.serving.prefix_cache import MIN_COMMON_TOKENS, CachedPrefix, PrefixCache, context_ids
from goldfinch.serving.radix_tree import Ids, concatenated
from goldfinch.serving.statistics import Statistics
from goldfinch.serving.tasks import GenerationTask, RequestCancelledError, Task

MAX_WAITING = 256
"""Tasks that have not begun; more are refused."""
CHUNK_BETWEEN_STEPS = 256
"""Tokens that are read at once while others generate: what their next token waits for."""
STEPS_PER_CHECK = 64
"""Steps after which memory is measured again."""
STATES_PER_CONTEXT = 3
"""States that a context is expected to hold: at its end, after its prompt, and at the end of a block."""
MAX_KNOWN_FILES = 64
"""Context files whose token ids are remembered."""


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
        self._latents = latents
        self.cache = PrefixCache()
        self.statistics = Statistics()
        self._condition = threading.Condition()
        self._waiting: deque[Task] = deque()  # used with the condition's lock only, as is the next
        self._is_stopping = False
        self._reading: dict[Task, Iterator[int]] = {}
        self._generating: dict[GenerationState, GenerationTask] = {}
        self._paused: deque[GenerationState] = deque()
        self._batch = Batch()
        self._file_ids: OrderedDict[Path, tuple[FileVersion | None, Ids]] = OrderedDict()
        self._steps_to_check = STEPS_PER_CHECK
        costs = account(lm.config)
        scale = lm.model.dtype.itemsize / 2  # costs are those of bfloat16
        self._bytes_per_token = costs.cache_bytes_per_token * scale
        self._bytes_per_context = costs.state_bytes * scale * STATES_PER_CONTEXT
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

    @property
    def bytes_per_token(self) -> int:
        """Of ids and latents in new contexts."""
        key_cache = self.lm.context(self._latents, budget=0).sequence.key_cache
        return bytes_per_token(self.lm.config, key_cache.format)

    def check_file(self, path: Path) -> None:
        """Check all of a context file.

        Raises:
            UserError: it is corrupt, or of another model.
        """
        self._check_dtype(path)
        self.lm.open(path, budget=0).sequence.key_cache.verify()

    def _check_dtype(self, path: Path) -> None:
        written, ours = read_description(path).dtype, dtype_name(self.lm.model.dtype)
        if written != ours:
            raise UserError(
                f"the context was written by the model in {written}, and the server runs it in {ours}: "
                f"start the server with --dtype {written}, or read the text again"
            )

    # For tasks, in the engine's thread.

    @property
    def chunk_size(self) -> int:
        """Tokens to read before it is the others' turn."""
        return CHUNK_BETWEEN_STEPS if self._generating else CHUNK_SIZE

    def tensor(self, ids: Ids) -> Tensor:
        """(T,) ids on the model's device."""
        return torch.from_numpy(ids).to(self.lm.model.device)

    def new_context(self) -> Context:
        """An empty one."""
        return self.lm.context(self._latents, budget=self._budget)

    def open_file(self, path: Path) -> Context:
        """The context in a file.

        Raises:
            UserError: it is corrupt, or of another model.
        """
        self._check_dtype(path)
        context = self.lm.open(path, budget=self._budget)
        context.snapshot()
        self._remember_ids(path, context_ids(context))
        return context

    def num_unknown(self, owner: str, base: Path | None, ids: Ids) -> int:
        """How many tokens of a prompt, after a context file if there is one, are not in memory."""
        if base is not None:
            known = self._known_ids(base)
            if known is None:
                return len(ids)
            ids = concatenated(known, ids)
        return len(ids) - self.cache.num_known(owner, ids)

    def open_prefix(self, owner: str, base: Path | None, ids: Ids) -> tuple[CachedPrefix, int]:
        """A context with as much of a prompt as is known, and how many tokens the context file has.

        Args:
            owner: whose.
            base: the context file that (T,) ids continue.
            ids: of the prompt.
        """
        if base is None:
            if (found := self.cache.find(owner, ids)) is None:
                self.statistics.misses[self._why_unknown(owner, ids)] += 1
                found = CachedPrefix(self.new_context(), 0)
            return found, 0
        known = self._known_ids(base)
        if known is not None:
            found = self.cache.find(owner, concatenated(known, ids), min_tokens=len(known))
            if found is not None:
                return found, len(known)
        self.statistics.misses["context file"] += 1
        context = self.open_file(base)
        self.cache.add(owner, context.fork())
        return CachedPrefix(context, 0), len(context)

    def begin(self, generation: GenerationState, task: GenerationTask) -> None:
        """Generate together with all others, from now on."""
        self._generating[generation] = task
        self._share_budget()
        self._advance(generation, self._batch.add(generation))

    # The rest.

    def _why_unknown(self, owner: str, ids: Ids) -> str:
        if len(ids) < MIN_COMMON_TOKENS:
            return "short prompt"
        return "nothing alike" if self.cache.has_any(owner) else "nothing kept"

    def _known_ids(self, path: Path) -> Ids | None:
        version, ids = self._file_ids.get(path, (None, None))
        return ids if version is not None and version == FileVersion.of(path) else None

    def _remember_ids(self, path: Path, ids: Ids) -> None:
        self._file_ids[path] = FileVersion.of(path), ids
        self._file_ids.move_to_end(path)
        if len(self._file_ids) > MAX_KNOWN_FILES:
            self._file_ids.popitem(last=False)

    @property
    def _budget(self) -> int:
        """Of expanded keys and values, for each generation: half of the memory for all together."""
        return self.max_bytes // 2 // max(len(self._generating), 1)

    def _share_budget(self) -> None:
        for generation in self._generating:
            if generation.sequence.key_value_cache is not None:
                generation.sequence.key_value_cache.budget = self._budget

    def _work(self) -> None:
        while self._wait():
            self._drop_cancelled()
            self._admit()
            if self._reading:
                self._continue_reading(min(self._reading, key=lambda task: task.num_computed))
            self._step()

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
        for task in (*waiting, *(task for task in list(self._reading) if task.is_cancelled)):
            self._reading.pop(task, None)
            task.on_event(RequestCancelledError())
        for generation in [generation for generation, task in self._generating.items() if task.is_cancelled]:
            self._leave_batch(generation)
            self._end(generation)

    def _admit(self) -> None:
        """Begin what there is memory for, in the order of arrival."""
        while self._waiting:
            task = self._waiting[0]
            try:
                needed = int(task.num_new_tokens(self) * self._bytes_per_token + self._bytes_per_context)
                if needed > self.max_bytes:
                    raise TooLargeError(
                        f"the text needs {needed:,} bytes of memory, and the server has {self.max_bytes:,}: give a "
                        "shorter one, or start the server with more --memory"
                    )
                if not self._make_room(needed) and not self._is_idle:
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
        except Exception as error:
            self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
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

    def measure(self) -> int:
        """Bytes of all contexts, what several share counted once."""
        sequences = [
            *(context.sequence for context in self.cache),
            *(task.context.sequence for task in self._reading if task.context is not None),
            *(generation.sequence for generation in self._generating),
        ]
        self.statistics.nbytes = nbytes_together(tensor for each in sequences for tensor in each.tensors())
        return self.statistics.nbytes

    def _make_room(self, needed: int) -> bool:
        """Take memory from contexts that are kept until `needed` bytes are free; whether they are."""
        while self.measure() + needed > self.max_bytes:
            if not self.cache.reclaim():
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
