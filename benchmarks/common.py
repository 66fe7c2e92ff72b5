"""Shared by all benchmarks: text, environment, tables and plots."""

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
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import goldfinch
from goldfinch import malloc
from goldfinch.benchmark.timing import Timings
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.tokenizers import WorldTokenizer
from goldfinch.devices import native_instructions
from goldfinch.plots import draw
from goldfinch.processor import processor_name

malloc.tune()  # as the command line does

WIDTH = 160  # of tables in files and pipes
PEER_PACKAGES = ("transformers", "xllamacpp", "gguf")


def moby_dick(tokens: int) -> torch.Tensor:
    """(tokens,) ids of Moby-Dick by the World tokenizer, repeated if it is too short."""
    text = "\n\n".join(moby_dick_chapters())
    ids = torch.tensor(WorldTokenizer().encode(text))
    return ids.repeat(-(-tokens // len(ids)))[:tokens]


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the arguments of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="after a warm-up")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--png", type=Path, help="also draw a plot")
    return parser


def environment() -> dict[str, Any]:
    """Machine, instruction set, versions and commit."""
    command = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "processor": processor_name(),
        "instruction set": instruction_set(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "goldfinch": f"{goldfinch.__version__} {revision.stdout.strip()}",
    }


def versions(packages: Iterable[str] = PEER_PACKAGES) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def instruction_set() -> str:
    """What PyTorch uses, and what multiplies bfloat16: "AVX2, bf16 emulated", "AVX512, bf16 by avx512_bf16"."""
    native = ", ".join(native_instructions("bfloat16"))
    return f"{torch.backends.cpu.get_cpu_capability()}, bf16 {f'by {native}' if native else 'emulated'}"


def resident() -> int:
    """Resident bytes of this process."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """Peak resident bytes of this process."""
    # From the kernel: `getrusage` also counts the parent before the fork.
    status = Path(os.sep, "proc", "self", "status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool, **facts: Any) -> None:
    """Print a table and facts below it, or one JSON object. None is an empty cell."""
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
    """Median (minimum - maximum)."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} - {max(values):,.4g})"


def times_faster_than_best(ours: Timings, others: Iterable[Timings]) -> float | None:
    """How many times as fast as the fastest of the others, median over repeats; None if there are no others."""
    fastest = min(others, key=lambda samples: samples.median, default=None)
    return None if fastest is None else ours.times_faster(fastest)


def plot(
    path: Path,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Mapping[Any, Sequence[float]]],
    tick: Callable[[Any], str] = "{:,}".format,
) -> None:
    """Plot medians with minimum and maximum, one line per name, on logarithmic axes.

    Args:
        path: of the PNG file.
        title: of the plot.
        labels: of the two axes.
        lines: name -> x -> values. If x are not numbers, points are drawn side by side, unconnected.
        tick: label of x.
    """
    xs = list(dict.fromkeys(x for line in lines.values() for x in line))
    numbers = all(isinstance(x, int) for x in xs)

    def fill(axes: Axes) -> None:
        for name, line in lines.items():
            middle = [statistics.median(values) for values in line.values()]
            below = [at - min(values) for at, values in zip(middle, line.values(), strict=True)]
            above = [max(values) - at for at, values in zip(middle, line.values(), strict=True)]
            positions = list(line) if numbers else [xs.index(x) for x in line]
            axes.errorbar(positions, middle, (below, above), fmt="o-" if numbers else "o", capsize=3, label=name)
        axes.set(yscale="log", xlabel=labels[0], ylabel=labels[1])
        if numbers:
            axes.set_xscale("log")
        axes.set_title(title)
        axes.set_xticks(xs if numbers else range(len(xs)), [tick(x) for x in xs])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)

    draw(path, fill)
