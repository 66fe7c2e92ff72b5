"""How the next token is chosen: plain settings that need no torch."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from goldfinch.argument_checks import boolean, integer, real, shortened
from goldfinch.errors import UserError
from goldfinch.inference.grammar import Grammar
from goldfinch.settings import did_you_mean

MAX_SEED = 2**63 - 1
NUMBERS = (
    "repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_decay", "temperature", "top_p", "min_p",
)  # fmt: skip
GENERATION_SETTINGS = ("max_tokens", "logprobs", "max_draft_tokens")
"""What `Context.stream` takes besides the fields of `Sampling`."""


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
    grammar: Grammar | None = None
    """What the text must match: a JSON schema, a regular expression or a Lark grammar. On the command line, a .json or
    .lark file."""

    def __post_init__(self) -> None:
        for name in NUMBERS:
            self._set(name, real(name, getattr(self, name)))
        self._set("top_k", integer("top_k", self.top_k))
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, maximum=MAX_SEED))
        boolean("ignore_eos", self.ignore_eos)
        self._set("stop", as_stop(self.stop))
        if not isinstance(self.grammar, Grammar | None):
            raise UserError(
                f"grammar must be a gf.Grammar, such as gf.Grammar.regex(...), not {shortened(self.grammar)}"
            )
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias must map token ids to numbers, not be {shortened(self.logit_bias)}")
        bias = {integer("a token id of logit_bias", id): real("logit_bias", b) for id, b in self.logit_bias.items()}
        self._set("logit_bias", bias)
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            ("penalty_decay", 0 <= self.penalty_decay <= 1, "between 0 and 1"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise UserError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # as frozen dataclasses do it in __init__

    def updated(self, **changes: object) -> "Sampling":
        """These settings with some fields changed.

        Raises:
            UserError: an unknown field, or a value is out of range.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in fields:
                known = [*fields, *GENERATION_SETTINGS]
                raise UserError(f"unknown sampling setting {name!r}; {did_you_mean(name, known)}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # the names are checked above

    def with_row_seed(self, row: int) -> "Sampling":
        """The settings of one row of a batch: its seed is seed + row."""
        return self if self.seed is None else dataclasses.replace(self, seed=self.seed + row)


def sampling_settings(sampling: Sampling | None, changes: Mapping[str, object]) -> Sampling:
    """Settings, or the defaults, with some fields changed.

    Raises:
        UserError: `sampling` is something else, an unknown field, or a value is out of range.
    """
    if not isinstance(sampling, Sampling | None):
        raise UserError(f"sampling must be a gf.Sampling, not {shortened(sampling)}")
    return (sampling or Sampling()).updated(**changes)


def as_stop(stop: object) -> tuple[str | int, ...]:
    """Stop strings and token ids, given as one or as a collection of them.

    Raises:
        UserError: anything else is among them, or an empty string.
    """
    given = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str | bytes) else (stop,)
    if not all(each for each in given if isinstance(each, str)):
        raise UserError("a stop string must not be empty")
    return tuple(each if isinstance(each, str) else integer("a stop token id", each) for each in given)
