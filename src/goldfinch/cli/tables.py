"""How commands print tables and JSON."""

import json
from collections.abc import Iterable
from typing import Any

from goldfinch.cli.terminal import shown, shown_json

Rows = list[tuple[str, str]]


def print_table(title: str, sections: Iterable[Rows]) -> None:
    """Print two columns, name and value, with a line between sections."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(shown(title)), title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE_HEAD
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section in sections:
        for row in section:
            table.add_row(*(escape(shown(cell)) for cell in row))
        table.add_section()
    Console(highlight=False).print(table)


def print_json(content: Any, indent: int | None = 2) -> None:
    """Print one JSON value; without `indent`, on one line."""
    print(shown_json(json.dumps(content, indent=indent, ensure_ascii=False)))
