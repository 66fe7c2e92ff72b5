"""All that a model holds of one sequence of token ids, how it grows, and how it goes back."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from goldfinch import malloc
from goldfinch.cache.growing_tensor import DEFAULT_BLOCK_SIZE
from goldfinch.cache.key_cache import KeyCache
from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.cache.latents import FloatLatents, LatentFormat
from goldfinch.inference.context_file.quantization import QuantizationProbe, QuantizationReport
from goldfinch.inference.cpu_decode import MAX_TOKENS, checked_once
from goldfinch.inference.memory_usage import MemoryUsage
from goldfinch.inference.one_thread import OneThread, one_thread
from goldfinch.inference.points import DraftStep, Mark, Prediction
from goldfinch.inference.prefill import CHUNK_SIZE, LowerState, chunks, next_token_logits, read_lower, read_upper
from goldfinch.inference.snapshots import Snapshots
from goldfinch.model import Decoder
from goldfinch.state import BlockState

# Releasing memory makes the next chunks fault it in again: once in two blocks that costs less than a twentieth.
BLOCKS_PER_RELEASE = 2


class TokenSequence:
    """One sequence: its key cache, states, expanded keys and values, and snapshots to go back to.

    The layers below GOLD run when tokens are appended; GOLD layers and head run only when logits are asked for.

    Args:
        model: any layer plan.
        latents: how they are stored; None for the model's own dtype, which rounds nothing.
        budget: maximum bytes of expanded keys and values to keep.
        chunk_size: tokens that go through the layers below GOLD at once.
        block_size: tokens of a block of the key cache; a multiple of `chunk_size`, so that snapshots are taken where
            chunks end.
    """

    def __init__(
        self,
        model: Decoder,
        latents: LatentFormat | None,
        budget: int,
        *,
        chunk_size: int = CHUNK_SIZE,
        block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> None:
        if block_size % chunk_size:
            raise ValueError(f"block_size {block_size} must be a multiple of chunk_size {chunk_size}")
        has_gold = model.config.num_gold_layers > 0
        self.guard = OneThread()
        self.model = model
        self.chunk_size = chunk_size
        self.key_cache = KeyCache(
            model.config, (latents or FloatLatents(model.dtype)) if has_gold else None, model.device, block_size
        )
        self.key_value_cache = KeyValueCache(model, self.key_cache, budget) if has_gold else None
        self._state: LowerState | None = None
        self.num_pending = 0
        """Tokens at the end that the state has not seen."""
        self._draft: DraftStep | None = None
        self._prediction: Prediction | None = None
        self.snapshots = Snapshots()
        self.quantization: QuantizationReport | None = None
        self.probe: QuantizationProbe | None = None
        """What the report is measured from; None once it is measured, or where latents are not integers."""
        if self.key_cache.format is not None and not self.key_cache.format.exact:
            self.probe = QuantizationProbe(model)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.key_cache)

    @property
    def block_size(self) -> int:
        """Tokens of a block of the key cache."""
        return self.key_cache.block_size

    @one_thread
    @torch.inference_mode()
    def current_state(self) -> LowerState | None:
        """The state after the last token, for which pending tokens are run through the layers; None without tokens."""
        while self.num_pending:
            self.replay(self.chunk_size)
        return self._state

    @one_thread
    @torch.inference_mode()
    def replay(self, max_tokens: int) -> int:
        """Run some of the pending tokens through the layers below GOLD.

        Returns:
            How many these were, at most `max_tokens`.
        """
        length = len(self)
        first, last = next(chunks(length - self.num_pending, length, self.chunk_size))
        last = min(last, first + max_tokens)
        (self._state,) = read_lower(self.model, self.key_cache.ids(first, last)[None], [self._state]).states
        self.num_pending = length - last
        return last - first

    @one_thread
    @torch.inference_mode()
    def append(self, ids: Tensor, progress: Callable[[int], None] | None = None) -> None:
        """Read (T,) int64 ids, T >= 1, all in the vocabulary. If that is interrupted, the sequence is unchanged.

        Args:
            ids: on the model's device.
            progress: called after each chunk with the number of its tokens.
        """
        self.current_state()
        mark, snapshots = self.mark(), self.snapshots.copy()
        try:
            for start, stop in chunks(mark.length, mark.length + len(ids), self.chunk_size):
                self._finish_append(self._run_lower(ids[start - mark.length : stop - mark.length])[1])
                if len(self) % (BLOCKS_PER_RELEASE * self.block_size) == 0:
                    malloc.trim()
                if progress is not None:
                    progress(stop - start)
        except BaseException:
            self.rewind(mark.length, mark)
            self.snapshots = snapshots
            raise

    def _run_lower(self, ids: Tensor) -> tuple[Tensor, LowerState]:
        """Run pending tokens and (T,) ids through the layers below GOLD, and store the ids.

        Returns:
            (1, pending + T, D), the output of these layers, and the state after them.
        """
        before, count = self._state, self.num_pending
        pending = self.key_cache.ids(len(self) - count, len(self))
        x, latents, (state,) = read_lower(self.model, torch.cat([pending, ids])[None], [before])
        self.store(ids, x[:, count:], None if latents is None else latents[0, count:], before)
        return x, state

    def store(self, ids: Tensor, x: Tensor, latents: Tensor | None, before: LowerState | None) -> None:
        """Put (T,) ids into the key cache, before `finish_step`.

        Args:
            ids: the new tokens.
            x: (1, T, D), the output of the layers below GOLD for them.
            latents: (T, R); None in models without GOLD layers.
            before: the state that these layers continued from.
        """
        self.key_cache.append(ids, latents)
        if self.probe is not None and latents is not None:
            self.probe.observe(ids, latents, x, before)

    def _finish_append(self, state: LowerState) -> None:
        """Take over the state at the present end; at the end of a block, keep a snapshot of it."""
        self._state, self.num_pending = state, 0
        fixed_size = not any(block.time_mix.GROWS for block in state.blocks)
        if len(self) % self.block_size == 0 and fixed_size:
            self.snapshots.add(len(self), state, self.block_size)

    def finish_step(self, state: LowerState, gold_states: list[BlockState], hidden: Tensor) -> None:
        """Take over what the layers computed for tokens that were stored.

        Args:
            state: after the last token.
            gold_states: the states of the GOLD layers after it.
            hidden: (1, D), its normalised hidden state.
        """
        self._prediction = Prediction(len(self), gold_states, hidden)
        self._draft = None
        self._finish_append(state)

    def snapshot(self) -> None:
        """Keep the present state, so that going back here costs nothing."""
        state = self.current_state()
        if state is not None:
            self.snapshots.pin(len(self), state)

    def compute_logits(self) -> Tensor:
        """(V,) float32: what follows the last token. Computed once for each length.

        Raises:
            ValueError: the sequence is empty.
            UserError: the key cache comes from a file that is corrupt.
        """
        prediction = self.predict()
        if prediction.logits is None:
            with torch.inference_mode():
                self.remember_logits(next_token_logits(self.model, prediction.hidden)[0])
        return cast(Tensor, self.predict().logits)

    def remember_logits(self, logits: Tensor) -> None:
        """Keep (V,) logits that were computed from `predict`, for `compute_logits`."""
        self._prediction = dataclasses.replace(self.predict(), logits=logits)

    @one_thread
    @torch.inference_mode()
    def predict(self) -> Prediction:
        """What the GOLD layers make of the last token. Computed once for each length.

        Raises:
            ValueError: the sequence is empty.
        """
        state = self.current_state()
        if state is None:
            raise ValueError("the context is empty: read a text first")
        if self._prediction is None or self._prediction.length != len(self):
            hidden, gold_states = self._run_upper(state.tail, 1)
            self._prediction = Prediction(len(self), gold_states, hidden)
        return self._prediction

    def _run_upper(self, tail: Tensor, num_wanted: int) -> tuple[Tensor, list[BlockState]]:
        """(wanted, D), normalised hidden states of the last tokens, and the GOLD layers' states after them."""
        if self.key_value_cache is None:
            return self.model.output_norm(tail[0, -num_wanted:]), []
        past = self._prediction
        num_new, states = (len(self) - past.length, [past.gold_states]) if past is not None else (len(self), None)
        hidden, (gold_states,) = read_upper(self.model, tail, num_new, states, self.key_value_cache, num_wanted)
        return hidden[0], gold_states

    @one_thread
    @torch.inference_mode()
    def advance(self, ids: Tensor, num_wanted: int) -> Tensor:
        """Append tokens, and run the GOLD layers as far as the last of them need it.

        Args:
            ids: (T,), T >= 1, all in the vocabulary.
            num_wanted: how many of them, at the end, have outputs; at least 1.

        Returns:
            (wanted, D), normalised hidden states for the head.
        """
        if num_wanted < len(ids):
            self.append(ids[: len(ids) - num_wanted])
            ids = ids[len(ids) - num_wanted :]
        elif self.num_pending + len(ids) > MAX_TOKENS:
            self.current_state()
        tail = [] if self._state is None else [self._state.tail]
        with checked_once(self.model):
            for start, stop in chunks(len(self), len(self) + len(ids), self.chunk_size):
                x, state = self._run_lower(ids[: stop - start])
                self._finish_append(state)
                tail.append(x)
                ids = ids[stop - start :]
            hidden, gold_states = self._run_upper(torch.cat(tail, dim=1), num_wanted)
        self._prediction = Prediction(len(self), gold_states, hidden[-1:])
        return hidden

    @one_thread
    @torch.inference_mode()
    def verify_draft(self, ids: Tensor) -> Tensor:
        """Append (T,) tokens in one step, of which `accept` then says how many stay.

        Pending tokens, which the last step accepted when it rejected others, go through the layers below GOLD once more
        together with these: a few tokens hardly take longer than one.

        Args:
            ids: T >= 1; none but the last may end a block, where a snapshot is due. While a quantization probe watches,
                one token only.

        Returns:
            (T, V) float32: what follows each of them.
        """
        if self.num_pending + len(ids) > MAX_TOKENS:
            self.current_state()
        start, state = self.mark(), self._state
        if state is None:
            raise ValueError("the context is empty: read a text first")
        if self.probe is not None and (len(ids) > 1 or start.num_pending):
            raise ValueError("measure the quantization before drafting tokens: all latents that were read are kept")
        with checked_once(self.model):
            x, after = self._run_lower(ids)
            hidden, gold_states = self._run_upper(torch.cat([state.tail, x], dim=1), len(ids))
            logits = next_token_logits(self.model, hidden)
        self._draft = DraftStep(start, after, gold_states, hidden[-1:], logits)
        self.accept(len(ids))
        return logits

    def accept(self, count: int) -> None:
        """Keep the first `count` tokens of the last draft step, at least 1. May be called again with fewer."""
        draft = self._draft
        if draft is None or not 1 <= count <= len(draft.logits):
            raise ValueError(f"there is no draft step of {count} tokens or more to accept")
        length = draft.start.length + count
        if count == len(draft.logits):
            self._prediction = Prediction(length, draft.gold_states, draft.hidden, draft.logits[-1])
            self._finish_append(draft.state)
            return
        self.rewind(length, draft.start)
        self._draft = draft

    def mark(self) -> Mark:
        """The present end, to `rewind` to."""
        return Mark(len(self), self.num_pending, self._state, self._prediction)

    def rewind(self, length: int, mark: Mark) -> None:
        """Go back to `length` tokens, at or after a mark that was made on the way to the present end.

        Tokens between the mark and `length` become pending: the state sees them when it is needed.
        """
        self._forget(length)
        self._state, self.num_pending = mark.state, mark.num_pending + length - mark.length
        self._prediction = mark.prediction

    def truncate(self, length: int, progress: Callable[[int], None] | None = None) -> int:
        """Go back to the first `length` tokens; returns how many were read again, from the nearest snapshot on.

        Only the state of the layers below GOLD is computed again, not the latents. If that is interrupted, the rest of
        these tokens are pending.
        """
        num_replayed = self.truncate_lazily(length)
        while self.num_pending:
            count = self.replay(self.chunk_size)
            if progress is not None:
                progress(count)
        return num_replayed

    @one_thread
    def truncate_lazily(self, length: int) -> int:
        """Go back to `length` tokens and read none of them again yet.

        Returns:
            How many are pending now: those after the nearest snapshot.
        """
        if length < len(self):
            start, state = self.snapshots.nearest(length)
            self._forget(length)
            self._state, self.num_pending = state, length - start
        return self.num_pending

    def restore(
        self,
        key_cache: KeyCache,
        state: LowerState,
        snapshots: Snapshots,
        quantization: QuantizationReport | None,
    ) -> None:
        """Become the sequence that was saved with these parts."""
        self.key_cache, self.snapshots = key_cache, snapshots
        self._state, self.num_pending = state, 0
        self.quantization, self.probe, self._prediction, self._draft = quantization, None, None, None
        if self.key_value_cache is not None:
            self.key_value_cache = KeyValueCache(self.model, key_cache, self.key_value_cache.budget)

    def _forget(self, length: int) -> None:
        self._draft = None
        self.key_cache.truncate(length)
        if self.key_value_cache is not None:
            self.key_value_cache.truncate(length)
        if self.probe is not None:
            self.probe.truncate(length)
        self.snapshots.truncate(length)
        if self._prediction is not None and self._prediction.length > length:
            self._prediction = None

    def fork(self) -> "TokenSequence":
        """A second sequence with the same past. No call changes a state in place, so both may hold the same ones."""
        other = copy.copy(self)
        other.guard = OneThread()
        other.key_cache = self.key_cache.fork()
        other.key_value_cache = self.key_value_cache.fork(other.key_cache) if self.key_value_cache is not None else None
        other.probe = self.probe.fork() if self.probe is not None else None
        other.snapshots, other._draft = self.snapshots.copy(), None
        return other

    @torch.inference_mode()
    def measure_quantization(self) -> QuantizationReport | None:
        """Measure once what integer latents change, and drop the unquantized ones. None without integer latents."""
        if self.probe is not None:
            self.quantization = self.probe.measure_quantization(self.key_cache) or self.quantization
            self.probe = None
        return self.quantization

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are held; forks hold some of them as well."""
        states = self._state, *self.snapshots.states.values()
        for part in (self.key_cache, self.key_value_cache, self._prediction, self.probe, *states):
            if part is not None:
                yield from part.tensors()

    def memory_usage(self) -> MemoryUsage:
        """Bytes held; runs no layer."""
        gold_states = self._prediction.gold_states if self._prediction is not None else []
        return MemoryUsage(
            key_cache=self.key_cache.nbytes,
            state=sum(tensor.nbytes for state in gold_states for tensor in state.tensors())
            + (self._state.nbytes if self._state is not None else 0),
            key_value_cache=self.key_value_cache.nbytes if self.key_value_cache is not None else 0,
            # The one at the present end is the state itself.
            snapshots=sum(kept.nbytes for kept in self.snapshots.states.values() if kept is not self._state),
            unquantized_latents=self.probe.nbytes if self.probe is not None else 0,
        )

    @property
    def nbytes(self) -> int:
        """Bytes held, in total."""
        return self.memory_usage().total
