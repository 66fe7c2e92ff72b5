"""Drawing into a png file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from goldfinch.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, plot: Callable[["Axes"], None]) -> None:
    """Let `plot` fill one pair of axes, and write them, all or nothing."""
    # The object interface, not pyplot: no global state, and no display is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    plot(figure.subplots())
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
