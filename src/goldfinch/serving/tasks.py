"""What is asked of the engine: answers after a prompt, and texts to be read into a context."""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import Document, check_document_name
from goldfinch.inference.generation import Generation, GenerationState, TokenLogprob
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.score import append_with_logprobs
from goldfinch.serving.radix_tree import Ids

if TYPE_CHECKING:
    from goldfinch.serving.engine import Engine

NO_IDS = np.empty(0, np.int64)
TOKENS_AHEAD = 1024
"""Generated tokens of an answer that memory is asked for before it begins; most are shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """Where the states after a prompt came from."""

    cached: int
    """Tokens that were in memory, or in a context file."""
    replayed: int
    """Tokens of these that recurrent layers read again, from the nearest snapshot."""
    computed: int
    """Tokens that were read."""

    @property
    def total(self) -> int:
        """Tokens of the prompt."""
        return self.cached + self.computed


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some text of an answer that is certain now."""

    index: int
    """Of the answer."""
    text: str
    logprobs: tuple[TokenLogprob, ...] | None
    """Of the tokens since the last piece, if they were asked for."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The end of an answer."""

    index: int
    generation: Generation
    prompt: PromptCounts
    rest: tuple[TokenLogprob, ...] | None
    """Log-probabilities of the tokens since the last piece."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None
    """Of the prompt's tokens from the second on, if they were asked for."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Some more tokens were read."""

    num_read: int
    num_total: int


class RequestCancelledError(Exception):
    """Nobody waits for the result any more."""


Event = Piece | Answer | Progress | Context | Exception


class Task(ABC):
    """Work on the engine's thread, piece by piece. It ends with what it was asked for, or with one exception.

    Args:
        owner: whose prompts it may share; "" where there are no keys.
        on_event: called in the engine's thread; it must return at once, and must not fail.
    """

    def __init__(self, owner: str, on_event: Callable[[Event], None]) -> None:
        self.owner, self.on_event = owner, on_event
        self.is_cancelled = False
        self.requested_at = time.monotonic()
        self.num_computed = 0
        """Tokens that were read for it so far: the task with the fewest is next."""
        self.context: Context | None = None
        """What it reads into."""

    def cancel(self) -> None:
        """Stop before the next piece or step; from any thread, any number of times."""
        self.is_cancelled = True

    @abstractmethod
    def num_new_tokens(self, engine: "Engine") -> int:
        """How many tokens need memory that have none yet."""

    @abstractmethod
    def run(self, engine: "Engine") -> Iterator[int]:
        """Do the work; yields the number of tokens that were read after each piece of it.

        Raises:
            UserError: what was asked for cannot be done.
        """

    def _read(self, engine: "Engine", context: Context, ids: Ids, start: int) -> Iterator[int]:
        """Read what is pending, then (T,) ids from the one at `start` on."""
        while context.sequence.num_pending:
            yield context.sequence.replay(engine.chunk_size)
        first = len(context) - start
        while len(context) - first < len(ids):
            done = len(context) - first
            # Pieces end at the same places wherever reading starts, so that numbers hardly depend on it.
            stop = engine.chunk_size - len(context) % engine.chunk_size
            context.read(engine.tensor(ids[done : done + stop]))
            yield len(context) - first - done


class GenerationTask(Task):
    """Answers after a prompt, which is read once for all of them.

    Args:
        owner, on_event: see `Task`. Gets a `Piece` now and then, and an `Answer` for each of `num_answers`.
        ids: (T,), the prompt after `base`; at least one token in all.
        sampling: how tokens are sampled, and where generation stops; the answer of index i has seed + i.
        max_tokens: maximum number of tokens of an answer.
        base: a context file that the prompt continues.
        num_answers: how many.
        first_index: of these answers among all of a request.
        num_logprobs: as in `Context.stream`.
        with_prompt_logprobs: whether the prompt's log-probabilities are wanted, too; then nothing of it is reused.
    """

    def __init__(
        self,
        owner: str,
        on_event: Callable[[Event], None],
        ids: Sequence[int] | Ids,
        sampling: Sampling,
        max_tokens: int,
        *,
        base: Path | None = None,
        num_answers: int = 1,
        first_index: int = 0,
        num_logprobs: int | None = None,
        with_prompt_logprobs: bool = False,
    ) -> None:
        super().__init__(owner, on_event)
        self.ids: Ids = np.asarray(ids, dtype=np.int64)
        self.base = base
        self._sampling, self._max_tokens = sampling, max_tokens
        self._num_answers, self._first_index, self._num_logprobs = num_answers, first_index, num_logprobs
        self._with_prompt_logprobs = with_prompt_logprobs
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None
        self._counts = PromptCounts(cached=0, replayed=0, computed=0)
        self._branches: dict[GenerationState, _Branch] = {}

    def num_new_tokens(self, engine: "Engine") -> int:
        """See `Task`."""
        ahead = self._num_answers * min(self._max_tokens, TOKENS_AHEAD)
        return engine.contexts.num_unknown(self.owner, self.base, self.ids) + ahead

    def run(self, engine: "Engine") -> Iterator[int]:
        """See `Task`."""
        read = self._score_prompt if self._with_prompt_logprobs else self._read_prompt
        context = yield from read(engine)
        context.snapshot()  # so that the prompt can be asked again at no cost
        _ = context.logits  # with what GOLD layers expand for it, which the answers then share
        engine.statistics.count(self._counts)
        engine.contexts.cache.add(self.owner, context.fork())
        self.context = None
        for index in range(self._first_index, self._first_index + self._num_answers):
            branch = _Branch(index, context.fork())
            generation = branch.context.generation_state(
                self._sampling.with_row_seed(index), self._max_tokens, self._num_logprobs
            )
            self._branches[generation] = branch
            engine.statistics.seconds_to_first_token.add(branch.began_at - self.requested_at)
            engine.begin(generation, self)

    def _read_prompt(self, engine: "Engine") -> Generator[int, None, Context]:
        prefix, num_base = engine.contexts.open_prefix(self.owner, self.base, self.ids)
        context = self.context = prefix.context
        cached = len(context)
        total = num_base + len(self.ids)
        self._counts = PromptCounts(cached=cached, replayed=prefix.num_replayed, computed=total - cached)
        yield from self._read(engine, context, self.ids, cached - num_base)
        return context

    def _score_prompt(self, engine: "Engine") -> Generator[int, None, Context]:
        if self.base is not None:
            raise UserError(
                "the prompt's log-probabilities are not computed after a context: leave echo or context out"
            )
        context = self.context = engine.contexts.new()
        context.read(engine.tensor(self.ids[:1]))
        logprobs = list[TokenLogprob]()
        while len(context) < len(self.ids):
            done = len(context)
            chunk = self.ids[done : done + engine.chunk_size - done % engine.chunk_size]
            logprobs += append_with_logprobs(context.sequence, engine.tensor(chunk), self._num_logprobs or 0)
            yield len(chunk)
        self._prompt_logprobs = tuple(logprobs)
        self._counts = PromptCounts(cached=0, replayed=0, computed=len(self.ids))
        return context

    def on_piece(self, generation: GenerationState, text: str) -> None:
        """An answer has some more text."""
        branch = self._branches[generation]
        self.on_event(Piece(branch.index, text, branch.new_logprobs(generation)))

    def on_end(self, engine: "Engine", generation: GenerationState) -> None:
        """An answer is complete, or as much of it as will be written."""
        branch, result = self._branches.pop(generation), generation.result()
        engine.contexts.cache.add(self.owner, branch.context)
        num_tokens, seconds = len(result.token_ids), time.monotonic() - branch.began_at
        engine.statistics.generated_tokens += num_tokens
        if num_tokens > 1:
            engine.statistics.seconds_per_token.add(seconds / (num_tokens - 1))
        rest = branch.new_logprobs(generation)
        self.on_event(Answer(branch.index, result, self._counts, rest, self._prompt_logprobs))


@dataclasses.dataclass
class _Branch:
    """One of the answers to a prompt, while it is written."""

    index: int
    context: Context
    num_reported: int = 0
    """Log-probabilities that were given with pieces of text."""
    began_at: float = dataclasses.field(default_factory=time.monotonic)

    def new_logprobs(self, generation: GenerationState) -> tuple[TokenLogprob, ...] | None:
        """Those since the last piece; None if they were not asked for."""
        new = generation.logprobs(self.num_reported)
        self.num_reported += len(new or ())
        return new


@dataclasses.dataclass(frozen=True)
class Text:
    """Something to read."""

    ids: Ids
    """(T,), at least one token."""
    name: str | None = None
    """Of the document that it is; None for text that is none."""


class ReadTask(Task):
    """A new context: a context file, up to some length, and texts after it.

    Args:
        owner, on_event: see `Task`. Gets `Progress`, and at the end the `Context`.
        base: a context file to start from; None for an empty context.
        length: how many tokens of it; None for all.
        texts: what is read after it, in order.
    """

    def __init__(
        self,
        owner: str,
        on_event: Callable[[Event], None],
        base: Path | None,
        length: int | None,
        texts: Sequence[Text],
    ) -> None:
        super().__init__(owner, on_event)
        self._base, self._length, self._texts = base, length, texts
        self.num_replayed = 0

    def num_new_tokens(self, engine: "Engine") -> int:
        """See `Task`."""
        return sum(len(text.ids) for text in self._texts)

    def run(self, engine: "Engine") -> Iterator[int]:
        """See `Task`."""
        context = self.context = engine.contexts.new() if self._base is None else engine.contexts.open(self._base)
        if self._length is not None:
            self.num_replayed = context.truncate_lazily(self._length)
        total, num_read = self.num_new_tokens(engine), 0
        for text in self._texts:
            start = len(context)
            for count in self._read(engine, context, text.ids, 0):
                num_read += count
                self.on_event(Progress(num_read, total))
                yield count
            if text.name is not None:
                context.documents.append(Document(name=check_document_name(text.name), start=start, stop=len(context)))
        if not len(context):
            raise UserError("a context needs a text: give text, token_ids, documents, messages or parent")
        yield from self._read(engine, context, NO_IDS, 0)
        context.snapshot()
        engine.contexts.cache.add(self.owner, context.fork())
        self.on_event(context)
