"""`goldfinch experiment`: the paper's smaller experiments, sized for two CPU cores."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse, require_model, require_path
from goldfinch.cli.contexts import Device, Dtype, Rope, load_folder
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.config import RopeConfig
    from goldfinch.experiments.mqar.train import MqarResult, MqarRun
    from goldfinch.experiments.needle import Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mqar:
    """Multi-query associative recall: can two-layer models of each kind recall the values of keys they have read?

    Every model is trained on every task with one learning rate after the other, until one reaches the target accuracy.
    Results are added to OUT/results.jsonl one by one: Ctrl-C loses only the runs in progress, and the same command
    continues. The paper's sizes: --vocab-size 8192 --tasks 64,4 128,8 256,16 512,64 --widths 64 128 256 512
    --learning-rates 1e-4 4.6e-4 2.2e-3 1e-2 --batch-size 256 --steps 25000.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output folder for results.md, accuracy.png and results.jsonl."""
    kinds: tuple[str, ...] = ("llama", "finch", "goldfinch")
    """Kinds of models, as in preset names."""
    tasks: tuple[str, ...] = ("32,4", "64,8", "128,32")
    """LENGTH,PAIRS: tokens and key-value pairs per sequence."""
    widths: tuple[int, ...] = (32,)
    """Widths of the models; one head below 64, heads of 64 otherwise."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-3)
    """Learning rates, tried in this order."""
    vocab_size: int = 256
    """Number of token ids: half are keys, half are values."""
    steps: int = 3000
    """Maximum training steps per model and learning rate."""
    batch_size: int = 32
    """Sequences per step."""
    target_accuracy: float = 0.995
    """Accuracy at which training stops."""
    num_seeds: int = 1
    """Runs per model, task and learning rate, with seeds 0, 1, ...; the table shows their mean."""
    jobs: int = 2
    """Runs at the same time, one core each."""
    json: bool = False
    """Print the results as JSON instead of a table."""

    def run(self) -> None:
        """Train what is missing, then write the report."""
        groups = self._groups()

        from goldfinch.experiments.mqar.report import RESULTS, write_mqar_report
        from goldfinch.experiments.mqar.train import sweep

        results = sweep(groups, self.output, self.jobs, _print_result)
        write_mqar_report(results, self.output)
        if self.json:
            print(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
            return
        print((self.output / RESULTS).read_text(encoding="utf-8").partition("\n\nColumns")[0])
        print(f"\nreport: {self.output / RESULTS} and its plot")

    def _groups(self) -> "list[list[MqarRun]]":
        from goldfinch.presets import KINDS
        from goldfinch.settings import did_you_mean

        for name in ("steps", "batch_size", "num_seeds", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"unknown kind {kind!r}; {did_you_mean(kind, list(KINDS))}")

        from goldfinch.experiments.mqar.task import MqarTask
        from goldfinch.experiments.mqar.train import MqarRun, mqar_model

        tasks = [MqarTask(vocab_size=self.vocab_size, length=t, pairs=p) for t, p in map(_task, self.tasks)]
        groups = []
        for seed, task, width, kind in itertools.product(range(self.num_seeds), tasks, self.widths, self.kinds):
            mqar_model(kind, width, self.vocab_size)  # refuses what cannot be built before anything begins
            groups.append(
                [
                    MqarRun(
                        kind=kind,
                        width=width,
                        task=task,
                        learning_rate=rate,
                        steps=self.steps,
                        batch_size=self.batch_size,
                        target_accuracy=self.target_accuracy,
                        seed=seed,
                    )
                    for rate in self.learning_rates
                ]
            )
        return groups


def _task(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"invalid task {text!r}: give LENGTH,PAIRS, such as 128,32")
    return int(parts[0]), int(parts[1])


def _print_result(result: "MqarResult") -> None:
    run = result.run
    print(
        f"{run.kind}, width {run.width}, {run.task}, rate {run.learning_rate:g}, seed {run.seed}: "
        f"{result.accuracy:.1%} after {result.num_steps:,} steps, {result.seconds:.0f} s",
        flush=True,
        file=sys.stderr,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Length extrapolation: loss by position far beyond the trained sequence length, on a text that no model has seen.

    The text is read in windows of --length tokens, each from an empty state; an incomplete last window is left out.
    Curves are added to OUT/curves.json one by one: the same command measures only what is missing.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Model folders."""
    text: Annotated[Path, tyro.conf.arg(name="text", metavar="FILE")]
    """UTF-8 text file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output folder for results.md, loss_by_position.png and curves.json."""
    length: int = 32768
    """Tokens per window."""
    max_windows: int = 0
    """Maximum number of windows, from the start of the text; 0 for all. Attention takes quadratic time: a window of
    32,768 tokens takes a model of 5 million parameters about a minute on one core."""
    rope: Annotated[tuple[str, ...], tyro.conf.arg(metavar="rescale=4,rebase=1")] = ()
    """Also measure models with rotary positions with each of these interpolations."""
    json: bool = False
    """Print the curves as JSON."""

    def run(self) -> None:
        """Measure what is missing, then write the report."""
        if not self.runs:
            raise UserError("name the folders of trained models")
        runs = [require_model(run) for run in self.runs]
        if self.length < 1 or self.max_windows < 0:
            raise UserError("--length must be at least 1, and --max-windows must not be negative")
        require_path(self.text)
        try:
            text = self.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"cannot read {self.text}: {reason}") from error
        interpolations = [_interpolation(words) for words in self.rope]

        from goldfinch.cli.progress import WindowsDisplay
        from goldfinch.experiments.position import RESULTS, measure_curves, write_position_report

        with WindowsDisplay() as display:
            curves = measure_curves(
                runs, text, self.length, self.max_windows, interpolations, self.output, display.advance
            )
        write_position_report(curves, self.text.name, self.output)
        if self.json:
            print(json.dumps([dataclasses.asdict(curve) for curve in curves], indent=1))
        else:
            print(f"report: {self.output / RESULTS} and its plot")


def _interpolation(text: str) -> "RopeConfig":
    from goldfinch.cli.rope import parse_rope
    from goldfinch.config import RopeConfig

    rope = parse_rope(text, name="--rope")
    if rope is None or rope.base != RopeConfig().base:
        raise UserError(f"--rope {text}: give rescale or rebase, such as rescale=4")
    return rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle:
    """A pass key hidden in a long text: does a model find it, at any depth and length?

    Needs no network: the text around the key is one paragraph again and again, or Moby-Dick. What lies before the key
    is read once for all depths. A million tokens take a model of width 128 about 15 minutes for each key and depth.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """Model folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output folder for results.md, needle.png and results.json."""
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """Tokens of the texts."""
    num_depths: int = 5
    """Depths, evenly spaced from the start of the text to its end."""
    trials: int = 3
    """Keys for each length and depth."""
    haystack: Literal["filler", "moby-dick"] = "filler"
    """What surrounds the key."""
    dtype: Dtype = "auto"
    """Weight dtype, as for `goldfinch generate`."""
    device: Device = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    rope: Rope = None
    """Rotary positions in place of the model's, as for `goldfinch ask`."""
    json: bool = False
    """Print the results as JSON."""

    def run(self) -> None:
        """Measure, then write the report."""
        for name in ("num_depths", "trials"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if not self.lengths:
            raise UserError("--lengths needs at least one number of tokens")
        lm = load_folder(self.model, self.dtype, self.device, self.rope)

        from goldfinch.experiments.needle import RESULTS, measure_needle, write_needle_report

        cells = measure_needle(lm, self.lengths, self.num_depths, self.trials, self.haystack, _print_cell)
        write_needle_report(cells, repr(lm), self.haystack, self.output)
        if self.json:
            print(json.dumps([dataclasses.asdict(cell) for cell in cells], indent=1))
        else:
            print(f"report: {self.output / RESULTS} and its plot")


def _print_cell(cell: "Cell") -> None:
    print(
        f"{cell.length:,} tokens, depth {cell.depth:.0%}: exact {cell.exact:.0%}, chosen {cell.chosen:.0%}, "
        f"{cell.nats_per_token:.3f} nats per token",
        flush=True,
        file=sys.stderr,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The paper's smaller experiments, sized for two CPU cores."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Mqar, tyro.conf.subcommand("mqar")]
        | Annotated[Position, tyro.conf.subcommand("position")]
        | Annotated[Needle, tyro.conf.subcommand("needle")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Experiment, "experiment", args).command.run()
