"""How the next token is chosen: plain settings that need no torch."""

import dataclasses
import math
from collections.abc import Mapping

from goldfinch.errors import UserError
from goldfinch.settings import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are sampled and where generation stops. The steps apply in the order of the fields.

    >>> Sampling(temperature=0.8, top_p=0.9, seed=0, stop=("\\n\\n",)).top_p
    0.9

    Raises:
        UserError: a value is out of range; the message names the field.
    """

    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Token id -> number added to its logit."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the output; 1 disables."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token in the output so far."""
    frequency_penalty: float = 0.0
    """Subtracted once more for each time the token occurs in the output so far."""
    penalty_decay: float = 1.0
    """Occurrences count less by this factor with every further token (RWKV's alpha_decay, 0.996); 1 disables."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 disables."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Drop tokens whose probability is below this fraction of the most likely one's."""
    seed: int | None = None
    """Random seed; the same seed gives the same text. Without one, the text differs each time."""
    stop: tuple[str | int, ...] = ()
    """Generation stops before the first of these strings, or at one of these token ids."""
    ignore_eos: bool = False
    """Continue after the end of text."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, (str, int)):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            ("penalty_decay", 0 <= self.penalty_decay <= 1, "between 0 and 1"),
            ("logit_bias", not any(map(math.isnan, self.logit_bias.values())), "numbers"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "0 or a positive integer below 2**63"),
            ("stop", all(isinstance(each, int) or each for each in self.stop), "non-empty strings or token ids"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise UserError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    def updated(self, **changes: object) -> "Sampling":
        """These settings with some fields changed.

        Raises:
            UserError: an unknown field, or a value is out of range.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in fields:
                raise UserError(f"unknown sampling setting {name!r}; {did_you_mean(name, fields)}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # the names are checked above

    def with_row_seed(self, row: int) -> "Sampling":
        """The settings of one row of a batch: its seed is seed + row."""
        return self if self.seed is None else dataclasses.replace(self, seed=self.seed + row)
