"""`goldfinch bench`: measure speed and memory on this machine."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from goldfinch.cli.arguments import named_config, parse
from goldfinch.cli.units import size
from goldfinch.devices import check_dtype_name, explain_auto_dtype
from goldfinch.errors import UserError
from goldfinch.pretrained import find_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from goldfinch.benchmark.kernels import KernelSpeed
    from goldfinch.benchmark.memory import MemoryUse
    from goldfinch.benchmark.speed import Speed
    from goldfinch.inference.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a model on this machine.

    `goldfinch bench memory`: bytes of cache and state from 1k to 1M tokens, for this model and for a Llama of the same
    depth and width. What fits in half of the free memory is allocated, filled and counted; the rest is computed and
    marked with ~. No weights are needed.

    `goldfinch bench speed`: prefill of a 2,048-token prompt, and decode after 512, 2,048 and 8,192 tokens at each cache
    level (docs/memory.md). Prefill is compared with plain matrix products of the model's shapes, decode with the time
    to read all weights once, the lower bound of a step. Measurements are interleaved to average out background load,
    after a check that prefill and decode give the logits of the whole forward. Needs 0.5 GiB besides the weights
    (random for presets). Comparisons with other programs are in `benchmarks/`.

    `goldfinch bench kernels`: each C++ kernel beside what PyTorch does in its place, in milliseconds, and which of the
    two is used on this machine. No model is needed.
    """

    what: tyro.conf.Positional[Literal["memory", "speed", "kernels"]]
    """What to measure."""
    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PRESET|FOLDER")]] = ""
    """A preset such as goldfinch-L12-D768, or a model folder. Default: goldfinch-L24-D2048 (memory), goldfinch-L6-D256
    (speed)."""
    latents: Literal["bfloat16", "float16", "float32", "int8", "int4"] = "bfloat16"
    """Format of the latents."""
    dtype: Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")] = "auto"
    """Weight dtype for speed: float32, bfloat16 or float16; auto: bfloat16 where the processor multiplies it natively,
    else float32."""
    repeats: int = 3
    """For speed: number of measurements, after a warm-up."""
    png: Path | None = None
    """For memory: also draw a plot of bytes over tokens."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Measure, and print a table or a JSON object."""
        if self.png is not None and self.what != "memory":
            raise UserError("--png is for `bench memory`")
        if self.what == "kernels":
            self._kernels()
        elif self.what == "memory":
            self._memory(self.model or "goldfinch-L24-D2048")
        else:
            self._speed(self.model or "goldfinch-L6-D256")

    def _kernels(self) -> None:
        if self.model:
            raise UserError(f"`bench kernels` needs no model, so leave out {self.model}")

        import torch

        from goldfinch.benchmark.kernels import measure_kernels, vector_bits

        found, bits = list(measure_kernels()), vector_bits()
        if self.json:
            kernels = [dataclasses.asdict(kernel) for kernel in found]
            print(json.dumps({"vector_bits": bits, "threads": torch.get_num_threads(), "kernels": kernels}, indent=2))
        elif bits is None:
            print("No C++ compiler was found: everything runs in PyTorch (goldfinch doctor).")
        else:
            _print_kernels(found, f"C++ kernels: vectors of {bits} bits, threads: {torch.get_num_threads()}")

    def _speed(self, name: str) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats must be at least 1, not {self.repeats}")
        check_dtype_name(self.dtype)
        named_config(name)  # its error names folders as well as presets

        from goldfinch.benchmark.speed import measure

        lm = _with_weights(name, self.dtype)
        choice = explain_auto_dtype(lm.model.device) if self.dtype == "auto" else None
        speed = measure(lm, repeats=self.repeats, latents=self.latents)
        if self.json:
            content = {"name": name, "latents": self.latents, "auto_dtype": choice, **speed.to_dict()}
            print(json.dumps(content, indent=2))
        else:
            _print_speed(name, speed, choice)

    def _memory(self, name: str) -> None:
        config = named_config(name)

        from goldfinch.benchmark.memory import llama_like, measure

        ours, llama = (list(measure(model, self.latents)) for model in (config, llama_like(config)))
        if self.json:
            content: dict[str, Any] = {"name": name, "model": config.to_dict(), "latents": self.latents}
            content |= {"this_model": _plain(ours), "llama": _plain(llama)}
            print(json.dumps(content, indent=2))
        else:
            _print_table(f"{name}, latents in {self.latents}", ours, llama)
        if self.png is not None:
            from goldfinch.plots import draw

            uses = {name: ours, f"Llama, {config.num_layers} x {config.width}": llama}
            draw(self.png, lambda axes: _plot(axes, uses))
            if not self.json:
                print(f"plot: {self.png}")


def _with_weights(name: str, dtype: str) -> "LanguageModel":
    """The model in a folder, or a preset with random weights, none of them zero."""
    from goldfinch.benchmark.speed import fill_zero_weights
    from goldfinch.inference.language_model import build, load

    if find_model(Path(name)).is_dir():
        return load(name, dtype)
    lm = build(name, dtype)
    fill_zero_weights(lm.model)
    return lm


def _print_speed(name: str, speed: "Speed", auto_dtype: str | None) -> None:
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
    for heading in ("", "cache level", "bytes", "tokens/s", "range", "of best"):
        table.add_column(heading, justify="left" if heading in ("", "cache level") else "right", no_wrap=True)

    def add(what: str, level: str, nbytes: str, rates: list[float], share: float) -> None:
        low, middle, high = (
            f"{rate:,.{0 if rate >= 1000 else 1}f}" for rate in (min(rates), statistics.median(rates), max(rates))
        )
        table.add_row(what, level, nbytes, middle, f"{low} - {high}", f"{share:.0%}")

    add(f"prefill {speed.prefill_tokens:,}", "", "", speed.tokens_per_second, speed.product_share)
    for decode in speed.decodes:
        rates = [1 / taken for taken in decode.seconds]
        add(f"decode at {decode.tokens:,}", decode.level or "", size(decode.kept_bytes), rates, decode.bound_share)
    console = Console(highlight=False)
    console.print(table)
    products, copied = speed.product_flops_per_second / 1e9, speed.copy_bytes_per_second / 1e9
    bound = speed.bound_seconds
    if auto_dtype is not None:
        console.print(auto_dtype, soft_wrap=True)
    for line in (
        "of best: prefill as a share of the first limit below, decode of the second. What is usual is the cache level",
        "keys_values, which is kept as long as it fits the cache budget; the others save memory (docs/memory.md).",
        f"Limit of prefill: {products:,.4g} GFLOP/s, the speed of matrix products of these shapes on this machine.",
        f"The best at decode: {1 / bound:,.4g} tokens/s. Each token reads {size(speed.weight_bytes)} of weights,",
        f"which takes {1e3 * bound:,.3g} ms at {copied:,.4g} GB/s, the speed of copying on this machine.",
        f"All results agree with the whole forward to {speed.max_difference:.1e} of the largest logit.",
    ):
        console.print(line, soft_wrap=True)


def _print_kernels(found: "list[KernelSpeed]", title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "C++, ms", "PyTorch, ms", "times as fast", "used"):
        table.add_column(heading, justify="left" if heading in ("", "used") else "right", no_wrap=True)
    for kernel in found:
        ours, pytorch = kernel.measurement.kernel_seconds, kernel.measurement.pytorch_seconds
        used = "C++" if kernel.is_used else "PyTorch"
        table.add_row(kernel.name, f"{1e3 * ours:.3f}", f"{1e3 * pytorch:.3f}", f"{pytorch / ours:.1f}", used)
    console = Console(highlight=False)
    console.print(table)
    console.print("What is used was decided when a kernel first ran here; $XDG_CACHE_HOME or ~/.cache keeps it.")


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
        table.add_column("per token", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right")
    for small, large in zip(ours, llama, strict=True):
        cells = [cell for use in (small, large) for cell in (_total(use), f"{use.per_token:,.0f} B")]
        table.add_row(f"{small.tokens:,}", *cells, f"{large.total / small.total:,.1f}x")
    console = Console(highlight=False)
    console.print(table)
    if any(use.measured is None for use in (*ours, *llama)):
        console.print("~ computed: does not fit in half of the free memory. All others are measured.")
    apart = [abs(use.measured / use.computed - 1) for use in (*ours, *llama) if use.measured is not None]
    if apart:
        console.print(f"Measured values are within {max(apart):.2%} of those computed from the model's shape.")


def _total(use: "MemoryUse") -> str:
    return f"{'~' if use.measured is None else ''}{size(use.total)}"


def _plot(axes: "Axes", uses: dict[str, Uses]) -> None:
    """Plot the totals over the length, on logarithmic axes; computed values are hollow and dashed."""
    from matplotlib.ticker import LogLocator, NullLocator

    for (name, line), color in zip(uses.items(), ("tab:orange", "tab:blue"), strict=True):
        tokens, totals = [use.tokens for use in line], [use.total for use in line]
        measured = sum(use.measured is not None for use in line)
        axes.plot(tokens[:measured], totals[:measured], "o-", color=color, label=name)
        axes.plot(tokens[measured:], totals[measured:], "o", color=color, markerfacecolor="none")
        axes.plot(tokens[max(measured - 1, 0) :], totals[max(measured - 1, 0) :], "--", color=color)
    axes.plot([], [], "o--", color="0.4", markerfacecolor="none", label="computed")
    ticks = [use.tokens for use in next(iter(uses.values()))]
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="bytes of cache and state")
    axes.set_title("Memory of a context")
    axes.set_xticks(
        ticks, [f"{tick // 1024:,}k" if tick < 1 << 20 else f"{tick >> 20}M" for tick in ticks], minor=False
    )
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(base=16))
    axes.yaxis.set_major_formatter(lambda value, _: size(round(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Bench, "bench", args).run()
