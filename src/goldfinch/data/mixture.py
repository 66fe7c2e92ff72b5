"""Several sources of training text in definite proportions."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from goldfinch.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data directory as settings name it: "FOLDER" or "FOLDER=WEIGHT".

    Attributes:
        folder: as it was written.
        weight: its part of all training windows, in any unit; None where it is not given.
    """

    folder: str
    weight: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read it; what follows the last "=" is the weight where it is a number.

        Raises:
            UserError: the weight is not above 0.
        """
        folder, _, number = text.rpartition("=")
        try:
            # Fractions: 0.1 is a tenth, and proportions are exact after any number of steps.
            weight = Fraction(number)
        except (ValueError, ZeroDivisionError):
            return cls(text)
        if weight <= 0:
            raise UserError(f"the weight of {folder} must be above 0, not {number}")
        return cls(folder, weight)


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Read the sources of a run.

    Raises:
        UserError: there is none, one comes twice, a weight is not above 0, or some have weights and others none.
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
        raise UserError(f"{without[0]} has no weight, others have: give FOLDER=WEIGHT for each source or for none")
    return sources


class Turn(NamedTuple):
    """Whose window a place in the training order takes, both counted from 0."""

    source: int
    window: int


class Mixture:
    """Which source fills each place of an endless order: evenly interleaved, exact, and computed for any place at once.

    Of the first n places source 0 has n w_0 (rounded), where w is its part of all weights. The places that are left
    are shared out by the same rule among the other sources, and so on. So at every place, in every batch and after
    any number of steps, each source is within a few windows of its share; random turns would stray ever farther from
    it, and need a table. Sources shuffle their own windows, so that the regular order of turns hides nothing.

    Args:
        weights: of the sources, above 0, in any unit.
    """

    def __init__(self, weights: Sequence[Fraction | int]) -> None:
        # The part of source i among i, i + 1, ..., as whole numbers: arithmetic without rounding.
        rests = [sum(weights[i:], Fraction(0)) for i in range(len(weights))]
        parts = [Fraction(weight) / rest for weight, rest in zip(weights, rests, strict=True)]
        self._parts = [(part.numerator, part.denominator) for part in parts]

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each source has."""
        counts, left = [], places
        for numerator, denominator in self._parts:
            counts.append((2 * left * numerator + denominator) // (2 * denominator))
            left -= counts[-1]
        return counts

    def turn(self, place: int) -> Turn:
        """The source and window of one place."""
        before, after = self.counts(place), self.counts(place + 1)
        source = next(i for i in range(len(before)) if after[i] > before[i])
        return Turn(source, before[source])
