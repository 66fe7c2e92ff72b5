"""Several contexts that generate together: one pass over the weights per step for all of them."""

import torch

from goldfinch.inference.generation import GenerationState
from goldfinch.inference.sequence import decode_together


class Batch:
    """Generations that step together. They may join and leave between steps; finished ones leave by themselves.

    Each gives the same text as alone. Use it from one thread.
    """

    def __init__(self) -> None:
        self._running: list[GenerationState] = []

    def __len__(self) -> int:
        """Number of generations that are not finished."""
        return len(self._running)

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

    def step(self) -> list[tuple[GenerationState, str]]:
        """Generate one token of each; returns the text that is certain now, piece by piece."""
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
            pieces.append((generation, generation.take(row)))
            if generation.finish_reason is not None:
                self._running.remove(generation)
                generation.settle()
        return pieces
