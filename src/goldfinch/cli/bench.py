"""`goldfinch bench`: measure a model on this machine."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from goldfinch.cli.arguments import named_config, parse
from goldfinch.cli.units import size

if TYPE_CHECKING:
    from goldfinch.inference.memory_benchmark import MemoryUse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a model on this machine.

    `goldfinch bench memory`: what remembering a text takes, from 1k to 1M tokens, for this model and for a Llama of
    its depth and width. Measured is what fits in half of the free memory: the tensors are filled and counted. What does
    not fit is computed, and marked so. The recurrent state is part of every total. Weights are neither needed nor made.
    """

    what: tyro.conf.Positional[Literal["memory"]]
    """What to measure."""
    preset: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PRESET|FOLDER")]] = "goldfinch-L24-D2048"
    """A preset such as goldfinch-L12-D768, or a folder with a model."""
    latents: Literal["bfloat16", "float16", "float32", "int8", "int4"] = "bfloat16"
    """What compressed keys are stored in."""
    png: Path | None = None
    """Also draw the totals over the length of the text into this file."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Measure both models; a table or a JSON object, and the plot."""
        from goldfinch.inference.memory_benchmark import llama_like, measure

        config = named_config(self.preset)
        ours, llama = (list(measure(model, self.latents)) for model in (config, llama_like(config)))
        if self.json:
            content: dict[str, Any] = {"name": self.preset, "model": config.to_dict(), "latents": self.latents}
            content |= {"this_model": _plain(ours), "llama": _plain(llama)}
            print(json.dumps(content, indent=2))
        else:
            _print_table(f"{self.preset}, compressed keys in {self.latents}", ours, llama)
        if self.png is not None:
            _plot({self.preset: ours, f"Llama, {config.layers} x {config.width}": llama}, self.png)
            if not self.json:
                print(f"drawn into {self.png}")


Uses = list["MemoryUse"]


def _plain(uses: Uses) -> list[dict[str, Any]]:
    return [dataclasses.asdict(use) | {"bytes": use.total} for use in uses]


def _print_table(title: str, ours: Uses, llama: Uses) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("tokens", justify="right")
    for name in ("this model", "Llama"):
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("a token", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right")
    for small, large in zip(ours, llama, strict=True):
        cells = [cell for use in (small, large) for cell in (_total(use), f"{use.per_token:,.0f} B")]
        table.add_row(f"{small.tokens:,}", *cells, f"{large.total / small.total:,.1f}x")
    console = Console(highlight=False)
    console.print(table)
    if any(use.measured is None for use in (*ours, *llama)):
        console.print("~ computed: it does not fit in half of the free memory. All others are measured.")
    apart = [abs(use.measured / use.computed - 1) for use in (*ours, *llama) if use.measured is not None]
    if apart:
        console.print(f"All that was measured is within {max(apart):.2%} of what is computed from the model's shape.")


def _total(use: "MemoryUse") -> str:
    return f"{'~' if use.measured is None else ''}{size(use.total)}"


def _plot(uses: dict[str, Uses], path: Path) -> None:
    """Both totals over the length, on logarithmic axes; what is computed is hollow and dashed."""
    # The object interface, not pyplot: no global state, and no display is looked for.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator

    from goldfinch.files import atomic_file

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, line), color in zip(uses.items(), ("tab:orange", "tab:blue"), strict=True):
        tokens, totals = [use.tokens for use in line], [use.total for use in line]
        measured = sum(use.measured is not None for use in line)
        axes.plot(tokens[:measured], totals[:measured], "o-", color=color, label=name)
        axes.plot(tokens[measured:], totals[measured:], "o", color=color, markerfacecolor="none")
        axes.plot(tokens[max(measured - 1, 0) :], totals[max(measured - 1, 0) :], "--", color=color)
    ticks = [use.tokens for use in next(iter(uses.values()))]
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="bytes, the state included")
    axes.set_title("Memory of a text")
    axes.set_xticks(
        ticks, [f"{tick // 1024:,}k" if tick < 1 << 20 else f"{tick >> 20}M" for tick in ticks], minor=False
    )
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(base=16))
    axes.yaxis.set_major_formatter(lambda value, _: size(round(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    handles, _ = axes.get_legend_handles_labels()
    hollow = Line2D([], [], color="0.4", linestyle="--", marker="o", markerfacecolor="none", label="computed")
    axes.legend(handles=[*handles, hollow])
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Bench, "bench", args).run()
