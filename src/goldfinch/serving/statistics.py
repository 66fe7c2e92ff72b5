"""What an engine has done since it started: plain numbers, which the metrics show."""

import bisect
import dataclasses
from collections import Counter
from collections.abc import Sequence

from goldfinch.serving.tasks import PromptCounts

SECONDS_TO_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
SECONDS_PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Distribution:
    """How many values lie between bounds.

    >>> seconds = Distribution([0.1, 1.0])
    >>> seconds.add(0.1)
    >>> seconds.add(20.0)
    >>> seconds.counts, seconds.sum
    ([1, 0, 1], 20.1)

    Args:
        bounds: ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Values up to each bound and above the one before; the last are those above all."""
        self.sum = 0.0
        """Of all values."""

    def copy(self) -> "Distribution":
        """The same as it is now."""
        other = Distribution(self.bounds)
        other.counts, other.sum = list(self.counts), self.sum
        return other

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclasses.dataclass
class Statistics:
    """Written by the engine's thread alone, read by any."""

    prompt_tokens: Counter[str] = dataclasses.field(default_factory=Counter)
    """By where they came from: "cached", "replayed" (some of these) and "computed"."""
    generated_tokens: int = 0
    tokens_by_owner: Counter[str] = dataclasses.field(default_factory=Counter)
    """Tokens that the model read or generated, for prompts, contexts and answers, finished or not."""
    steps: int = 0
    """Passes over the weights for all generations together."""
    misses: Counter[str] = dataclasses.field(default_factory=Counter)
    """Prompts of which nothing was in memory, by reason."""
    num_reclaimed: int = 0
    """Times that memory was taken from contexts that were kept."""
    num_paused: int = 0
    """Times that a generation was put aside for want of memory."""
    nbytes: int = 0
    """Of all contexts, when they were last measured."""
    seconds_to_first_token: Distribution = dataclasses.field(
        default_factory=lambda: Distribution(SECONDS_TO_FIRST_TOKEN)
    )
    """From a request until an answer begins."""
    seconds_per_token: Distribution = dataclasses.field(default_factory=lambda: Distribution(SECONDS_PER_TOKEN))
    """Mean of an answer, after its first token."""

    def copy(self) -> "Statistics":
        """The same as it is now, which the engine's thread does not change; from any thread."""
        other = dataclasses.replace(self)
        for name, value in vars(self).items():
            if isinstance(value, Counter | Distribution):
                setattr(other, name, Counter(dict(value)) if isinstance(value, Counter) else value.copy())
        return other

    def count(self, prompt: PromptCounts) -> None:
        """Add the tokens of a prompt."""
        self.prompt_tokens.update(dataclasses.asdict(prompt))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """An engine as it is now."""

    statistics: Statistics
    num_running: int
    """Requests that are being read or answered."""
    num_waiting: int
    """Requests that have not begun."""
    num_kept: int
    """Contexts that are kept in memory for prompts that begin like them."""
    max_bytes: int
    """Memory for all contexts."""
    bytes_per_token: int
    """Of ids and latents in new contexts."""
