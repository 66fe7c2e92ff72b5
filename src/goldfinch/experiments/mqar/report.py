"""The report of MQAR results: `results.md` and `accuracy.png`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goldfinch.experiments.markdown import markdown_table
from goldfinch.experiments.mqar.task import MqarTask
from goldfinch.experiments.mqar.train import MqarResult, best_accuracies
from goldfinch.files import write_text
from goldfinch.plots import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, PLOT = "results.md", "accuracy.png"


def write_mqar_report(results: Sequence[MqarResult], output: Path) -> None:
    """Write both files into `output`."""
    table = best_accuracies(results)
    tasks = list(dict.fromkeys(result.run.task for result in results))
    runs = [result.run for result in results]
    first = runs[0]
    headings = ("model", "width", *(f"{task.length}, {task.pairs}" for task in tasks))
    lines = [
        (kind, str(width), *(f"{accuracies[task]:.1%}" if task in accuracies else "" for task in tasks))
        for (kind, width), accuracies in table.items()
    ]
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.learning_rate for run in runs}))
    seeds = len({run.seed for run in runs})
    minutes = sum(result.seconds for result in results) / 60
    text = (
        "# Multi-query associative recall",
        markdown_table(headings, lines),
        "Columns: tokens, key-value pairs. Accuracy at the queries of test sequences, best over the "
        f"learning rates {rates}, {seeds} seed{'s' * (seeds > 1)}. Two layers, {first.task.vocab_size} ids, at most "
        f"{first.steps:,} steps of {first.batch_size} sequences, fewer if {first.target_accuracy:.1%} was reached. "
        f"Training took {minutes:.0f} minutes in total, each run on one thread.",
        markdown_table(("model, width", "task", "rate", "steps", "accuracy"), map(_table_row, results), words=2),
        f"![Accuracy]({PLOT})",
    )
    write_text(output / RESULTS, "\n\n".join(text) + "\n")
    draw(output / PLOT, lambda axes: _heat_map(axes, table, tasks))


def _table_row(result: MqarResult) -> tuple[str, ...]:
    run = result.run
    return (
        f"{run.kind}, {run.width}",
        str(run.task),
        f"{run.learning_rate:g}",
        f"{result.num_steps:,}",
        f"{result.accuracy:.1%}",
    )


def _heat_map(axes: "Axes", table: dict[tuple[str, int], dict[MqarTask, float]], tasks: Sequence[MqarTask]) -> None:
    accuracies = [[row.get(task, math.nan) for task in tasks] for row in table.values()]
    axes.imshow(accuracies, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
    for y, row in enumerate(accuracies):
        for x, accuracy in enumerate(row):
            if not math.isnan(accuracy):
                axes.text(x, y, f"{accuracy:.0%}", ha="center", va="center", color="w" if accuracy > 0.7 else "k")
    axes.set_xticks(range(len(tasks)), [str(task).replace(", ", "\n") for task in tasks])
    axes.set_yticks(range(len(table)), [f"{kind}, {width}" for kind, width in table])
    axes.set_title("MQAR: accuracy, best over learning rates")
