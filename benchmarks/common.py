"""What all benchmarks share: the text they read, where they ran, how they print."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import goldfinch
from goldfinch.data.text import moby_dick_chapters
from goldfinch.data.tokenizers import WorldTokenizer


def moby_dick(tokens: int) -> torch.Tensor:
    """(tokens,) ids of the World tokenizer: Moby-Dick, from the beginning again where it is too short."""
    text = "\n\n".join(moby_dick_chapters())
    ids = torch.tensor(WorldTokenizer().encode(text))
    return ids.repeat(-(-tokens // len(ids)))[:tokens]


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


def _processor() -> str:
    description = Path(os.sep, "proc", "cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool, **facts: Any) -> None:
    """Print a table and the facts beside it, or one JSON object."""
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
    console.print(table)
    for name, value in facts.items():
        console.print(f"{name}: {value}")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} - {max(values):,.4g})"
