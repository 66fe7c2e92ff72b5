"""States at earlier positions of a text: going back to one of them reads nothing again."""

import math
from collections.abc import Iterable, Mapping

from goldfinch.inference.prefill import LowerState

# Automatic snapshots lie at multiples of the block size, of SNAPSHOT_SPACING blocks, of its square ...: the last two of
# each are kept.
SNAPSHOT_SPACING = 4


class Snapshots:
    """The states below GOLD at some positions. Automatic ones are dropped as the text grows; pinned ones stay.

    Args:
        states: position -> the state there.
        pinned: positions of snapshots that were asked for.
    """

    def __init__(self, states: Mapping[int, LowerState] | None = None, pinned: Iterable[int] = ()) -> None:
        self.states = dict(states or {})
        self.pinned = set(pinned)

    def __len__(self) -> int:
        """Number of snapshots."""
        return len(self.states)

    def add(self, position: int, state: LowerState, block_size: int) -> None:
        """Keep an automatic snapshot at the end of a block, and drop those that have become too dense."""
        kept = self.pinned | log_spaced(position, block_size)
        self.states = {at: state for at, state in self.states.items() if at in kept}
        self.states[position] = state

    def pin(self, position: int, state: LowerState) -> None:
        """Keep a snapshot for good."""
        self.states[position] = state
        self.pinned.add(position)

    def nearest(self, position: int) -> tuple[int, LowerState | None]:
        """The last snapshot at or before `position`: where it is, and the state; (0, None) without one."""
        start = max((at for at in self.states if at <= position), default=0)
        return start, self.states.get(start)

    def truncate(self, length: int) -> None:
        """Drop those after the first `length` tokens."""
        self.states = {at: state for at, state in self.states.items() if at <= length}
        self.pinned &= self.states.keys()

    def copy(self) -> "Snapshots":
        """The same snapshots; adding to one does not change the other. No call changes a state in place."""
        return Snapshots(self.states, self.pinned)


def log_spaced(length: int, block_size: int) -> set[int]:
    """Positions of the snapshots that a text of `length` tokens keeps: dense near its end, sparse before.

    Going back d tokens then reads fewer than max(2 blocks, 7 d) tokens again.
    """
    levels = range(math.ceil(math.log(max(length, 1), SNAPSHOT_SPACING)) + 1)
    spacings = [block_size * SNAPSHOT_SPACING**level for level in levels]
    last = {length // spacing * spacing - back for spacing in spacings for back in (0, spacing)}
    return {position for position in last if position > 0}
