"""What all benchmarks share: the text they read, where they ran, how they print and draw."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import goldfinch
from goldfinch.benchmark.timing import Timings
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.tokenizers import WorldTokenizer
from goldfinch.files import atomic_file

WIDTH = 160  # of tables that go into a file or a pipe
PEER_PACKAGES = ("transformers", "xllamacpp", "gguf")


def moby_dick(tokens: int) -> torch.Tensor:
    """(tokens,) ids of the World tokenizer: Moby-Dick, from the beginning again where it is too short."""
    text = "\n\n".join(moby_dick_chapters())
    ids = torch.tensor(WorldTokenizer().encode(text))
    return ids.repeat(-(-tokens // len(ids)))[:tokens]


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """What every comparison takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="after a warm-up round")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--png", type=Path, help="also draw into this file")
    return parser


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    command = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "goldfinch": f"{goldfinch.__version__} {revision.stdout.strip()}",
    }


def versions(packages: Iterable[str] = PEER_PACKAGES) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    description = Path(os.sep, "proc", "cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most that were so far."""
    # The kernel's own mark: `getrusage` counts what the parent had before this process was there.
    status = Path(os.sep, "proc", "self", "status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool, **facts: Any) -> None:
    """Print a table and the facts beside it, or one JSON object. None is an empty cell."""
    facts = environment() | facts
    if as_json:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"title": title, **facts, "rows": named}, indent=2))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for name, value in facts.items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} - {max(values):,.4g})"


def times_faster_than_best(ours: Timings, others: Iterable[Timings]) -> float | None:
    """How many times as fast as the fastest of the others: the median of rounds; None where there are no others."""
    fastest = min(others, key=lambda samples: samples.median, default=None)
    return None if fastest is None else ours.times_faster(fastest)


def plot(
    path: Path,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Mapping[Any, Sequence[float]]],
    tick: Callable[[Any], str] = "{:,}".format,
) -> None:
    """Draw medians with their lowest and highest, one line per name, on logarithmic axes.

    Args:
        path: of the PNG file.
        title: of the plot.
        labels: of the two axes.
        lines: name -> place on the x axis -> values. Places that are no numbers stand side by side, unconnected.
        tick: how a place is written.
    """
    # The object interface, not pyplot: no global state, and no display is looked for.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    places = list(dict.fromkeys(place for line in lines.values() for place in line))
    numbers = all(isinstance(place, int) for place in places)
    for name, line in lines.items():
        middle = [statistics.median(values) for values in line.values()]
        below = [at - min(values) for at, values in zip(middle, line.values(), strict=True)]
        above = [max(values) - at for at, values in zip(middle, line.values(), strict=True)]
        x = list(line) if numbers else [places.index(place) for place in line]
        axes.errorbar(x, middle, (below, above), fmt="o-" if numbers else "o", capsize=3, label=name)
    axes.set(yscale="log", xlabel=labels[0], ylabel=labels[1])
    if numbers:
        axes.set_xscale("log")
    axes.set_title(title)
    axes.set_xticks(places if numbers else range(len(places)), [tick(place) for place in places])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
