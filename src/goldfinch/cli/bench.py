"""`goldfinch bench`: measure a model on this machine."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from goldfinch.cli.arguments import named_config, parse
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.benchmark.memory import MemoryUse
    from goldfinch.benchmark.speed import Speed
    from goldfinch.inference.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a model on this machine.

    `goldfinch bench memory`: what remembering a text takes, from 1k to 1M tokens, for this model and for a Llama of
    its depth and width. Measured is what fits in half of the free memory: the tensors are filled and counted. What does
    not fit is computed, and marked so. The recurrent state is part of every total. Weights are neither needed nor made.

    `goldfinch bench speed`: how fast it reads a prompt of 2,048 tokens and writes after texts of 512, 2,048 and 8,192,
    at each level of what is kept rebuilt (docs/memory.md), and how near that is to what the machine can do: reading is
    compared with plain matrix products of the model's shapes, writing with the time it takes to read the weights once,
    which no step can do without. All runs in turns, so that other work on the machine falls on all alike. Before that,
    reading and writing must give the logits of the whole forward. Besides the weights of a preset, which are random,
    it takes 0.5 GiB. Comparisons with other programs are in `benchmarks/`.
    """

    what: tyro.conf.Positional[Literal["memory", "speed"]]
    """What to measure."""
    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PRESET|FOLDER")]] = ""
    """A preset such as goldfinch-L12-D768, or a folder with a model; of itself goldfinch-L24-D2048 for memory, and
    goldfinch-L6-D256 for speed."""
    latents: Literal["bfloat16", "float16", "float32", "int8", "int4"] = "bfloat16"
    """What compressed keys are stored in."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights, for speed; float32 for presets if not given, and for folders what they are stored in."""
    rounds: int = 3
    """How often speed measures everything, after once to warm up."""
    png: Path | None = None
    """For memory: also draw the totals over the length of the text into this file."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Measure; a table or a JSON object, and the plot."""
        if self.what == "memory":
            self._memory(self.model or "goldfinch-L24-D2048")
        else:
            self._speed(self.model or "goldfinch-L6-D256")

    def _speed(self, name: str) -> None:
        from goldfinch.benchmark.speed import measure

        if self.png is not None:
            raise UserError("`bench speed` draws nothing: --png is for `bench memory`")
        if self.rounds < 1:
            raise UserError(f"--rounds must be at least 1, not {self.rounds}")
        speed = measure(_with_weights(name, self.dtype), rounds=self.rounds, latents=self.latents)
        if self.json:
            print(json.dumps({"name": name, "latents": self.latents, **speed.to_dict()}, indent=2))
        else:
            _print_speed(name, speed)

    def _memory(self, name: str) -> None:
        from goldfinch.benchmark.memory import llama_like, measure

        config = named_config(name)
        ours, llama = (list(measure(model, self.latents)) for model in (config, llama_like(config)))
        if self.json:
            content: dict[str, Any] = {"name": name, "model": config.to_dict(), "latents": self.latents}
            content |= {"this_model": _plain(ours), "llama": _plain(llama)}
            print(json.dumps(content, indent=2))
        else:
            _print_table(f"{name}, compressed keys in {self.latents}", ours, llama)
        if self.png is not None:
            _plot({name: ours, f"Llama, {config.num_layers} x {config.width}": llama}, self.png)
            if not self.json:
                print(f"drawn into {self.png}")


def _with_weights(name: str, dtype: str | None) -> "LanguageModel":
    """The model in a folder, or a preset with weights that leave no part of it without effect."""
    from goldfinch.benchmark.speed import fill_zero_weights
    from goldfinch.inference.language_model import build, load

    named_config(name)  # its complaint names folders as well as presets
    if Path(name).is_dir():
        return load(name, dtype or "auto")
    lm = build(name, dtype or "float32")
    fill_zero_weights(lm.model)
    return lm


def _print_speed(name: str, speed: "Speed") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{name}: {speed.parameters:,} parameters in {speed.dtype}, threads: {speed.threads}"
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "keeps", "bytes", "tokens/s", "range", "of best"):
        table.add_column(heading, justify="left" if heading in ("", "keeps") else "right", no_wrap=True)

    def add(what: str, keeps: str, nbytes: str, rates: list[float], share: float) -> None:
        low, middle, high = (
            f"{rate:,.{0 if rate >= 1000 else 1}f}" for rate in (min(rates), statistics.median(rates), max(rates))
        )
        table.add_row(what, keeps, nbytes, middle, f"{low} - {high}", f"{share:.0%}")

    add(f"read {speed.read_tokens:,}", "", "", speed.tokens_per_second, speed.product_share)
    for writing in speed.writings:
        rates = [1 / taken for taken in writing.seconds]
        add(f"write at {writing.tokens:,}", writing.level or "", size(writing.kept_bytes), rates, writing.bound_share)
    console = Console(highlight=False)
    console.print(table)
    products, copied = speed.product_flops_per_second / 1e9, speed.copy_bytes_per_second / 1e9
    bound = speed.bound_seconds
    for line in (
        f"The best at reading: {products:,.4g} GFLOP/s, what matrix products of these shapes reach here.",
        f"The best at writing: {1 / bound:,.4g} tokens/s. Each token reads {size(speed.weight_bytes)} of weights,",
        f"which takes {1e3 * bound:,.3g} ms at the {copied:,.4g} GB/s that copying reaches here.",
        f"All ways give the logits of the whole forward, to {speed.largest_difference:.1e} of the largest.",
    ):
        console.print(line, soft_wrap=True)


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
