"""Generating text after a context: sampling, draft tokens, stop conditions, and what is returned."""

import dataclasses
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goldfinch.argument_checks import integer
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.grammar import Grammar
from goldfinch.inference.points import Mark
from goldfinch.inference.sampler import Sampler
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.score import TokenLogprob, logprobs_with_alternatives
from goldfinch.inference.sequence import TokenSequence
from goldfinch.inference.speculation import DraftPolicy, PromptLookup
from goldfinch.inference.text_stream import FinishReason, TextStream
from goldfinch.inference.token_ids import require_tokenizer, token_ids

if TYPE_CHECKING:
    from goldfinch.inference.grammar_matcher import GrammarMatcher

DEFAULT_MAX_TOKENS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated text, without its prompt."""

    text: str
    """Up to the stop string or the end of text, which are not part of it; empty without a tokenizer."""
    token_ids: tuple[int, ...]
    """The tokens that the context now ends with."""
    finish_reason: FinishReason | None
    """"stop": at the end of text, a stop string or token, or of the grammar; "length": at `max_tokens`; None: not
    finished."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each generated token, if they were asked for."""
    num_forward_passes: int = 0
    """Passes over the weights."""
    num_draft_tokens: int = 0
    """Tokens drafted by speculative decoding."""
    num_accepted: int = 0
    """Draft tokens that were accepted."""

    def summary(self) -> str:
        """One line for people.

        >>> Generation(text="a", token_ids=(1,), finish_reason="length", num_forward_passes=1).summary()
        '1 token, 1 forward pass'
        """
        tokens, passes = len(self.token_ids), self.num_forward_passes
        line = f"{tokens:,} token{'s' * (tokens != 1)}, {passes:,} forward pass{'es' * (passes != 1)}"
        if self.num_draft_tokens:
            line += f"; speculative decoding: {self.num_accepted:,} of {self.num_draft_tokens:,} draft tokens accepted"
        return line


class GenerationState:
    """One context that is being continued: what was sampled, the text so far, and where it ends.

    The next token is sampled before it is appended, so that one that ends the text never enters the context.

    Args:
        sequence: not empty; it grows.
        tokenizer: None for a model of token ids only.
        sampling: how tokens are sampled, and stop conditions.
        max_tokens: maximum number of tokens, 0 or more.
        num_logprobs: None for no log-probabilities; 0 for those of the generated tokens; more for as many alternatives.

    Raises:
        UserError: a number is negative; or a grammar, but no tokenizer, or one that it does not fit.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        tokenizer: Tokenizer | None,
        sampling: Sampling,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        num_logprobs: int | None = None,
    ) -> None:
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._max_tokens = integer("max_tokens", max_tokens)
        self._num_logprobs = None if num_logprobs is None else integer("logprobs", num_logprobs)
        # A model may have more ids than its tokenizer: the others have no text and are never generated.
        self._vocab_size = sequence.model.config.vocab_size if tokenizer is None else tokenizer.vocab_size
        self._stop_ids = {each for each in sampling.stop if isinstance(each, int)}
        if tokenizer is not None and not sampling.ignore_eos:
            self._stop_ids.add(tokenizer.end_of_text)
        prompt = sequence.key_cache.ids(0, len(sequence)).tolist() if sampling.repetition_penalty != 1 else ()
        self._sampler = Sampler(sampling, prompt)
        self._matcher = _grammar_matcher(sampling.grammar, tokenizer)
        self._stream = TextStream(tokenizer, [each for each in sampling.stop if isinstance(each, str)])
        self._start = len(sequence)
        self._marks: list[Mark] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.error: UserError | None = None
        """Why it cannot continue, if a batch had to do without it."""
        self.num_forward_passes = self.num_draft_tokens = self.num_accepted = 0
        self.next_token = 0
        """Sampled, part of the text, and not appended yet."""

    def begin(self) -> str:
        """Sample the first token; returns the text that it completes."""
        if self._max_tokens == 0:
            self.finish_reason = "length"
            return ""
        return self.take(self.sequence.compute_logits())

    def mark(self) -> None:
        """Remember the present end of the sequence: a stop string may lead back to it."""
        if not self._stream.is_holding:
            self._marks.clear()
        self._marks.append(self.sequence.mark())

    @property
    def num_left(self) -> int:
        """Tokens that may still be sampled."""
        return self._max_tokens - len(self._ids)

    def take(self, logits: Tensor) -> str:
        """Sample a token from (V,) logits; returns the text that is certain now. It may finish the generation."""
        logits = logits[: self._vocab_size]
        allowed = self._allowed_tokens()
        if allowed is not None and not allowed.any():  # the grammar has ended, and the end of text is ignored
            self.finish_reason = "stop"
            return self._stream.flush()
        token = self._sampler.sample(logits, allowed)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return self._stream.flush()
        if self._num_logprobs is not None:
            self._logprobs += logprobs_with_alternatives(logits[None], [token], self._num_logprobs)
        self._ids.append(token)
        self.next_token = token
        if self._matcher is not None:
            self._matcher.advance(token)
        piece = self._stream.push(token)
        if self._stream.stopped:
            self.finish_reason = "stop"
            kept, rest = self._stream.split_at_end()
            self._ids, self._logprobs = self._ids[:kept], self._logprobs[:kept]
            if rest:
                self._ids += token_ids(rest, self._tokenizer, self.sequence.model.config.vocab_size).tolist()
        elif self._matcher is not None and self._matcher.is_complete:
            self.finish_reason = "stop"
            piece += self._stream.flush()
        elif self.num_left == 0:
            self.finish_reason = "length"
            piece += self._stream.flush()
        return piece

    def _allowed_tokens(self) -> Tensor | None:
        """(V,) bool: tokens that the grammar allows next; what stops the generation, wherever the text may end."""
        if self._matcher is None or self._tokenizer is None:
            return None
        allowed = self._matcher.allowed_tokens()
        allowed[self._tokenizer.end_of_text] &= self._tokenizer.end_of_text in self._stop_ids
        if self._matcher.may_end:
            for token in self._stop_ids:
                allowed[token : token + 1] = True  # nothing, if it is outside the vocabulary
        return allowed

    def forced_tokens(self, max_tokens: int) -> list[int]:
        """Up to this many tokens that the grammar leaves no choice about, after `next_token`."""
        return [] if self._matcher is None else self._matcher.forced_tokens()[:max_tokens]

    def possible_tokens(self, draft: list[int]) -> list[int]:
        """As much of a draft as the grammar allows after `next_token`."""
        return draft if self._matcher is None else draft[: self._matcher.num_allowed(draft)]

    def settle(self, interrupted: bool = False) -> None:
        """Let the sequence end exactly after the generated tokens, wherever it ends now.

        Args:
            interrupted: whether its states may be those of a step that was not completed.
        """
        present = self.sequence.key_cache.ids(self._start, len(self.sequence)).tolist()
        num_common = 0
        for ours, theirs in zip(self._ids, present, strict=False):
            if ours != theirs:
                break
            num_common += 1
        length = self._start + num_common
        if interrupted or length < len(self.sequence):
            mark = next((mark for mark in reversed(self._marks) if mark.length <= length), None)
            if mark is not None:
                self.sequence.rewind(length, mark)
        missing = self._ids[num_common:]
        if missing:
            self.sequence.append(torch.tensor(missing, device=self.sequence.model.device))

    def logprobs(self, start: int = 0) -> tuple[TokenLogprob, ...] | None:
        """Of the tokens so far, from one on; None if they were not asked for."""
        return None if self._num_logprobs is None else tuple(self._logprobs[start:])

    def result(self) -> Generation:
        """What was generated so far."""
        return Generation(
            text=self._stream.text,
            token_ids=tuple(self._ids),
            finish_reason=self.finish_reason,
            logprobs=self.logprobs(),
            num_forward_passes=self.num_forward_passes,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted=self.num_accepted,
        )


class GenerationStream:
    """Generated text, piece by piece, never half a character: iterate over it, then look at `generation`.

    Closing it early, or leaving its `with` block, lets the context end with the text that was yielded.
    """

    def __init__(self, state: GenerationState, drafts: DraftPolicy) -> None:
        self._state = state
        self._pieces = _generate(state, drafts)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()  # type: ignore[attr-defined]  # a generator

    @property
    def generation(self) -> Generation:
        """What was generated so far; all of it once the iteration has ended."""
        return self._state.result()

    def run(self) -> Generation:
        """Generate to the end."""
        for _ in self:
            pass
        return self.generation


def _generate(state: GenerationState, drafts: DraftPolicy) -> Iterator[str]:
    sequence = state.sequence
    lookup = None
    if drafts.max_draft_tokens > 0 and sequence.probe is None:  # a quantization probe watches tokens one by one
        lookup = PromptLookup(sequence.key_cache.ids(0, len(sequence)).tolist())
    try:
        yield from filter(None, [state.begin()])
        while state.finish_reason is None:
            token, draft = state.next_token, list[int]()
            is_forced = False
            if lookup is not None:
                lookup.add([token])
                # A snapshot is due at the end of the block, which only the last token of a step may reach.
                to_block_end = sequence.block_size - len(sequence) % sequence.block_size
                max_tokens = min(state.num_left, to_block_end - 1)
                draft = state.forced_tokens(min(drafts.max_draft_tokens, max_tokens))
                is_forced = bool(draft)
                if not is_forced:
                    draft = state.possible_tokens(lookup.find(min(drafts.num_next(), max_tokens)))
            state.mark()
            logits = sequence.verify_draft(torch.tensor([token, *draft], device=sequence.model.device))
            state.num_forward_passes += 1
            num_accepted = 0
            # A draft token that is also what is sampled is accepted; the first other one is the next token.
            for drafted, row in zip([*draft, None], logits, strict=True):
                yield from filter(None, [state.take(row)])
                if state.finish_reason is not None or state.next_token != drafted:
                    break
                num_accepted += 1
            if state.finish_reason is None:
                sequence.accept(1 + num_accepted)
            if lookup is not None:
                lookup.add(draft[:num_accepted])
            if not is_forced:  # these are always accepted, and say nothing about the others
                drafts.record(len(draft), num_accepted)
            state.num_draft_tokens += len(draft)
            state.num_accepted += num_accepted
        state.settle()
    except BaseException:
        state.settle(interrupted=True)
        raise


def _grammar_matcher(grammar: Grammar | None, tokenizer: Tokenizer | None) -> "GrammarMatcher | None":
    if grammar is None:
        return None
    # Its package is an extra.
    from goldfinch.inference.grammar_matcher import GrammarMatcher

    return GrammarMatcher(grammar, require_tokenizer(tokenizer))
