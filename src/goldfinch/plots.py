"""Drawing PNG files."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from goldfinch.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, plot: Callable[["Axes"], None]) -> None:
    """Let `plot` draw on one pair of axes, and write the figure with a legend below, atomically."""
    # The object interface, not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    plot(axes)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2)  # not among the curves: there may be many
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
