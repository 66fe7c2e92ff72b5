"""Points of a text that a sequence remembers: what it predicts there, and what it needs to go back."""

import dataclasses

from torch import Tensor

from goldfinch.inference.prefill import LowerState
from goldfinch.state import BlockState


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the GOLD layers and the head computed at some length of the text."""

    length: int
    """Of the text, in tokens."""
    gold_states: list[BlockState]
    """States of the GOLD layers after it."""
    hidden: Tensor
    """(1, D): the normalised hidden state of its last token."""
    logits: Tensor | None = None
    """(V,) float32; None until they are asked for."""

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        logits = [] if self.logits is None else [self.logits]
        return [self.hidden, *logits, *(tensor for state in self.gold_states for tensor in state.tensors())]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point that a sequence can be rewound to at no cost: its states there, which no call changes in place."""

    length: int
    """Tokens at that point."""
    num_pending: int
    """How many of them the state had not seen yet."""
    state: LowerState | None
    prediction: Prediction | None


@dataclasses.dataclass(frozen=True)
class DraftStep:
    """Tokens of which some may be rejected: the point before them, and the states after all of them."""

    start: Mark
    state: LowerState
    gold_states: list[BlockState]
    hidden: Tensor
    """(1, D), of the last of these tokens."""
    logits: Tensor
    """(tokens of the step, V)."""
