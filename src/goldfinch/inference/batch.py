"""Several contexts that generate together: one pass over the weights per step for all of them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.cpu_decode import checked_once
from goldfinch.inference.generation import Generation, GenerationState
from goldfinch.inference.prefill import next_token_logits, read_lower, read_upper
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.sequence import TokenSequence

MAX_BATCH_SIZE = 16
"""Generations that are stepped together, where there are more."""


class Batch:
    """Generations that step together. They may join and leave between steps; finished ones leave by themselves.

    Each gives the same text as alone. Use it from one thread.
    """

    def __init__(self) -> None:
        self._running: list[GenerationState] = []

    def __len__(self) -> int:
        """Number of generations that are not finished."""
        return len(self._running)

    def __contains__(self, generation: GenerationState) -> bool:
        return generation in self._running

    def add(self, generation: GenerationState) -> str:
        """Let a generation join. Its first token is sampled at once; returns the text that it completes.

        Raises:
            ValueError: it is of another model, or of the same in another dtype.
        """
        if self._running and generation.sequence.model is not self._running[0].sequence.model:
            raise ValueError("a batch steps one model, and this generation is of another, or in another dtype")
        piece = generation.begin()
        if generation.finish_reason is None:
            self._running.append(generation)
        else:
            generation.settle()
        return piece

    def remove(self, generation: GenerationState) -> None:
        """Let a generation leave; its context ends with what was generated so far."""
        self._running.remove(generation)
        generation.settle()

    def pause(self, generation: GenerationState) -> None:
        """Let a generation wait as it is: it is not stepped until `resume`."""
        self._running.remove(generation)

    def resume(self, generation: GenerationState) -> None:
        """Continue a generation that waits."""
        self._running.append(generation)

    def step(self) -> list[tuple[GenerationState, str]]:
        """Generate one token of each; returns the text that is certain now, piece by piece.

        A generation from which no token can be sampled, as its `error` then says, leaves; the others continue.
        """
        running = list(self._running)
        if not running:
            return []
        for generation in running:
            generation.mark()
        sequences = [generation.sequence for generation in running]
        ids = torch.tensor([generation.next_token for generation in running], device=sequences[0].model.device)
        try:
            logits = decode_together(sequences, ids)
        except BaseException:
            for generation in running:
                generation.settle(interrupted=True)
            self._running.clear()
            raise
        pieces = []
        for generation, row in zip(running, logits, strict=True):
            generation.num_forward_passes += 1
            try:
                pieces.append((generation, generation.take(row)))
            except UserError as error:
                generation.error = error
                pieces.append((generation, ""))
            if generation.finish_reason is not None or generation.error is not None:
                self._running.remove(generation)
                generation.settle()
        return pieces


def generate_together(
    generations: Iterable[GenerationState], max_batch_size: int = MAX_BATCH_SIZE
) -> Iterator[GenerationState]:
    """Step generations together; each is given back when it is finished.

    Args:
        generations: the next one is taken when there is room for it: what it continues may be read just then.
        max_batch_size: how many at once.

    Raises:
        UserError: no token can be sampled from one of them.
    """
    batch, running, waiting, is_exhausted = Batch(), list[GenerationState](), iter(generations), False
    while running or not is_exhausted:
        while not is_exhausted and len(batch) < max_batch_size:
            if (generation := next(waiting, None)) is None:
                is_exhausted = True
            else:
                batch.add(generation)
                running.append(generation)
        for stepped, _ in batch.step():
            if stepped.error is not None:
                raise stepped.error
        yield from (generation for generation in running if generation.finish_reason is not None)
        running = [generation for generation in running if generation.finish_reason is None]


def generate_rows(
    contexts: Iterable[Context], sampling: Sampling, max_tokens: int, logprobs: int | None
) -> list[Generation]:
    """Generate after each of several contexts, row i with the seed + i; a context is taken when there is room for it.

    Raises:
        UserError: no token can be sampled in one of them.
    """
    states = list[GenerationState]()

    def start() -> Iterator[GenerationState]:
        for row, context in enumerate(contexts):
            states.append(context.generation_state(sampling.with_row_seed(row), max_tokens, logprobs))
            yield states[-1]

    for _ in generate_together(start()):
        pass
    return [state.result() for state in states]


@torch.inference_mode()
def decode_together(sequences: Sequence[TokenSequence], ids: Tensor) -> Tensor:
    """Append one token to each of several sequences: one pass over the weights for all of them.

    Args:
        sequences: of the same model, none of them empty, no two the same.
        ids: (B,) int64, on the model's device.

    Returns:
        (B, V) float32: what follows each token. The same numbers as from `verify_draft` one by one.
    """
    if len(sequences) == 1:
        return sequences[0].verify_draft(ids)
    model = sequences[0].model
    with checked_once(model):
        logits = next_token_logits(model, advance_together(sequences, ids))
    for sequence, row in zip(sequences, logits, strict=True):
        sequence.remember_logits(row)
    return logits


@torch.inference_mode()
def advance_together(sequences: Sequence[TokenSequence], ids: Tensor) -> Tensor:
    """The same without the head: (B, D), normalised hidden states. Sequences may be empty if there is only one."""
    model = sequences[0].model
    if len(sequences) == 1:
        return sequences[0].advance(ids, 1)
    past = [sequence.predict() for sequence in sequences]
    states = [sequence.current_state() for sequence in sequences]
    with checked_once(model):
        x, latents, after = read_lower(model, ids[:, None], states)
        for row, (sequence, state) in enumerate(zip(sequences, states, strict=True)):
            sequence.store(ids[row : row + 1], x[row : row + 1], None if latents is None else latents[row], state)
        caches = [sequence.key_value_cache for sequence in sequences if sequence.key_value_cache is not None]
        if caches:
            gold = [prediction.gold_states for prediction in past]
            hidden, gold_states = read_upper(model, x, 1, gold, caches)
            hidden = hidden[:, 0]
        else:
            hidden, gold_states = model.output_norm(x[:, -1]), [[] for _ in sequences]
    for row, (sequence, state, of_row) in enumerate(zip(sequences, after, gold_states, strict=True)):
        sequence.finish_step(state, of_row, hidden[row : row + 1])
    return hidden
