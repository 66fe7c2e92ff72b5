"""Interleaved measurements, which average out background load."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Case = TypeVar("Case", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """How long one case took in each repeat."""

    by_repeat: Mapping[int, float]
    """Repeat -> seconds. Repeat 0 is the warm-up."""

    def repeats(self) -> set[int]:
        """Repeats that count: all but the warm-up, unless there was no other."""
        return set(self.by_repeat) - {0} or set(self.by_repeat)

    @property
    def seconds(self) -> list[float]:
        """Of the repeats that count."""
        return [self.by_repeat[number] for number in sorted(self.repeats())]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def times_faster(self, other: "Timings") -> float:
        """How many times as fast as another case this was: the median over common repeats."""
        both = self.by_repeat.keys() & other.by_repeat.keys()
        counted = both - {0} or both
        return statistics.median(other.by_repeat[number] / self.by_repeat[number] for number in counted)


def interleave(
    cases: Mapping[Case, Callable[[], float]], repeats: int, patience: float = math.inf
) -> dict[Case, Timings]:
    """Measure each case once per repeat, in order, after a warm-up.

    Args:
        cases: each does its work and returns the seconds that count.
        repeats: after the warm-up.
        patience: seconds; a case that took longer is not measured again. If the warm-up took longer, it is the
            measurement: in a call that long the start does not matter.
    """
    taken: dict[Case, dict[int, float]] = {case: {} for case in cases}
    for number in range(repeats + 1):
        for case, measure in cases.items():
            if max(taken[case].values(), default=0.0) <= patience:
                taken[case][number] = measure()
    return {case: Timings(by_repeat=by_repeat) for case, by_repeat in taken.items()}


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
