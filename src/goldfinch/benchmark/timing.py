"""Measuring several things in turns, so that what else the machine does falls on all of them alike."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Case = TypeVar("Case", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """How long one thing took, round by round."""

    by_round: Mapping[int, float]
    """Round -> seconds. Round 0 is the warm-up."""

    def rounds(self) -> set[int]:
        """Those that count: not the warm-up, unless there was no other."""
        return set(self.by_round) - {0} or set(self.by_round)

    @property
    def seconds(self) -> list[float]:
        """Of the rounds that count."""
        return [self.by_round[number] for number in sorted(self.rounds())]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def times_faster(self, other: "Timings") -> float:
        """How many times as fast as another this was: the median over the rounds that both took part in."""
        both = self.by_round.keys() & other.by_round.keys()
        counted = both - {0} or both
        return statistics.median(other.by_round[number] / self.by_round[number] for number in counted)


def interleave(
    cases: Mapping[Case, Callable[[], float]], rounds: int, patience: float = math.inf
) -> dict[Case, Timings]:
    """Measure each case once a round, in order, after a warm-up round.

    Args:
        cases: each does its work and returns the seconds that count.
        rounds: after the warm-up.
        patience: seconds; a case that took longer is not measured again. If the warm-up did, that is its measurement:
            in a call that long the start is of no weight.
    """
    taken: dict[Case, dict[int, float]] = {case: {} for case in cases}
    for number in range(rounds + 1):
        for case, measure in cases.items():
            if max(taken[case].values(), default=0.0) <= patience:
                taken[case][number] = measure()
    return {case: Timings(by_round=by_round) for case, by_round in taken.items()}


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
