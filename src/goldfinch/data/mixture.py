"""Mixing several data sources in exact proportions."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from goldfinch.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data directory as given in settings: "FOLDER" or "FOLDER=WEIGHT".

    Attributes:
        folder: as given.
        weight: its share of all training windows, in any unit; None if not given.
    """

    folder: str
    weight: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parse it; a number after the last "=" is the weight.

        Raises:
            UserError: the weight is not above 0.
        """
        folder, _, number = text.rpartition("=")
        try:
            # A fraction: 0.1 is exactly a tenth, and proportions stay exact after any number of steps.
            weight = Fraction(number)
        except (ValueError, ZeroDivisionError):
            return cls(text)
        if weight <= 0:
            raise UserError(f"the weight of {folder} must be above 0, not {number}")
        return cls(folder, weight)


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Parse the sources of a run.

    Raises:
        UserError: there are none, one is given twice, a weight is not above 0, or only some have weights.
    """
    sources = [Source.parse(text) for text in texts]
    if not sources:
        raise UserError("data must name at least one folder")
    folders = [source.folder for source in sources]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"data names {folder} twice: give it once, with a higher weight (FOLDER=WEIGHT)")
    without = [source.folder for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise UserError(f"{without[0]} has no weight, but others do: give FOLDER=WEIGHT for all sources or for none")
    return sources


class WindowRef(NamedTuple):
    """A window of a source, both counted from 0."""

    source: int
    window: int


class Mixture:
    """Which source each position of an endless order is taken from: evenly interleaved, exact, with random access.

    1. Of the first n positions, source 0 has n w_0 (rounded), where w_0 is its share of the weights.
    2. The remaining positions are divided by the same rule among the other sources, and so on.
    3. So at every position each source is within a few windows of its share. Random choices would drift away from it
       and need a table.

    Sources shuffle their own windows, so the regular order does no harm.

    Args:
        weights: of the sources, above 0, in any unit.
    """

    def __init__(self, weights: Sequence[Fraction | int]) -> None:
        # The share of source i among sources i, i + 1, ..., as integers: exact arithmetic.
        rests = [sum(weights[i:], Fraction(0)) for i in range(len(weights))]
        parts = [Fraction(weight) / rest for weight, rest in zip(weights, rests, strict=True)]
        self._parts = [(part.numerator, part.denominator) for part in parts]

    def counts(self, num_positions: int) -> list[int]:
        """How many of the first positions each source has."""
        counts, left = [], num_positions
        for numerator, denominator in self._parts:
            counts.append((2 * left * numerator + denominator) // (2 * denominator))
            left -= counts[-1]
        return counts

    def window_ref(self, position: int) -> WindowRef:
        """The window at one position of the order."""
        before, after = self.counts(position), self.counts(position + 1)
        source = next(i for i in range(len(before)) if after[i] > before[i])
        return WindowRef(source, before[source])
