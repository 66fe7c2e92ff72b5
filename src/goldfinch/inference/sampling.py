"""How the next token is to be chosen: plain settings, for which no torch is needed."""

import dataclasses

from goldfinch.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The steps apply in the order of the fields, penalties first."""

    presence_penalty: float = 0.0
    """Taken from the logit of every token that was written before (RWKV's alpha_presence)."""
    frequency_penalty: float = 0.0
    """Taken from it once more per occurrence (RWKV's alpha_frequency)."""
    penalty_decay: float = 0.996
    """Occurrences fade by this factor at every token (RWKV's alpha_decay); 1 to never forget."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Keep only this many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest."""

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("penalty_decay", 0 <= self.penalty_decay <= 1, "between 0 and 1"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise UserError(f"{name} must be {wanted}, not {getattr(self, name)}")
