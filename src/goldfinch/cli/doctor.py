"""`goldfinch doctor`: what a bug report needs."""

import dataclasses
from typing import Any

from goldfinch.cli.arguments import parse
from goldfinch.cli.tables import print_json, print_table
from goldfinch.cli.units import size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, processor, instruction sets, compiler, threads, caches and GPUs: what a bug report needs.

    Nothing is sent anywhere, and nothing is compiled.
    """

    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Look, and print."""
        from goldfinch.doctor import diagnose

        found = diagnose()
        if self.json:
            print_json(found)
            return
        sections = [
            [(section, ""), *((f"  {_label(name)}", _value(name, value)) for name, value in facts.items())]
            for section, facts in found.items()
            if facts
        ]
        print_table("goldfinch doctor", sections)


def _label(name: str) -> str:
    return name if name.isupper() else name.removeprefix("num_").removesuffix("_bytes").replace("_", " ")


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return size(value) if name.endswith("_bytes") else str(value)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Doctor, "doctor", args).run()
