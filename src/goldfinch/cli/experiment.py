"""`goldfinch experiment`: the paper's smaller experiments, at a scale that two cores allow."""

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.config import RopeConfig
    from goldfinch.experiments.mqar.train import MqarCell, MqarResult
    from goldfinch.experiments.position import Curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mqar:
    """Multi-query associative recall: can two-layer models of each kind recall the values of keys they have read?

    Every model is trained at every task with one learning rate after the other, until one solves it. Each result is in
    OUT/cells.jsonl as soon as it is there: Ctrl-C loses no more than what is being trained, and the same command goes
    on. The paper's own sizes: --vocab-size 8192 --tasks 64,4 128,8 256,16 512,64 --widths 64 128 256 512 --rates 1e-4
    4.6e-4 2.2e-3 1e-2 --batch-size 256 --steps 25000.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for results.md, accuracy.png and cells.jsonl."""
    kinds: tuple[str, ...] = ("llama", "finch", "goldfinch")
    """Of models, as in preset names."""
    tasks: tuple[str, ...] = ("32,4", "64,8", "128,32")
    """LENGTH,PAIRS: tokens in a sequence, key-value pairs in it."""
    widths: tuple[int, ...] = (32,)
    """D of the models; one head below 64, heads of 64 from there on."""
    rates: tuple[float, ...] = (3e-3, 1e-3)
    """Learning rates, in the order in which they are tried."""
    vocab_size: int = 256
    """Ids: half of them keys, half of them values."""
    steps: int = 3000
    """At most, for each model and rate."""
    batch_size: int = 32
    """Sequences in a step."""
    solved: float = 0.995
    """Accuracy at which training ends."""
    seeds: int = 1
    """Trainings of each cell, with seeds 0, 1 ...; the table has their mean."""
    jobs: int = 2
    """Trainings at once, each on one core."""

    def run(self) -> None:
        """Train what is not in the file yet, then write the report."""
        groups = self._groups()

        from goldfinch.experiments.mqar.report import RESULTS, write_mqar_report
        from goldfinch.experiments.mqar.train import sweep

        results = sweep(groups, self.output, self.jobs, _tell)
        write_mqar_report(results, self.output)
        print((self.output / RESULTS).read_text(encoding="utf-8").partition("\n\nColumns")[0])
        print(f"\nwritten: {self.output / RESULTS} and its plot")

    def _groups(self) -> "list[list[MqarCell]]":
        from goldfinch.experiments.mqar.task import MqarTask
        from goldfinch.experiments.mqar.train import MqarCell, mqar_model
        from goldfinch.presets import KINDS
        from goldfinch.settings import did_you_mean

        for name in ("steps", "batch_size", "seeds", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"unknown kind {kind!r}; {did_you_mean(kind, list(KINDS))}")
        tasks = [MqarTask(vocab_size=self.vocab_size, length=t, pairs=p) for t, p in map(_task, self.tasks)]
        groups = []
        for seed, task, width, kind in itertools.product(range(self.seeds), tasks, self.widths, self.kinds):
            mqar_model(kind, width, self.vocab_size)  # refuses what cannot be built before anything begins
            groups.append(
                [
                    MqarCell(
                        kind=kind,
                        width=width,
                        task=task,
                        learning_rate=rate,
                        steps=self.steps,
                        batch_size=self.batch_size,
                        solved=self.solved,
                        seed=seed,
                    )
                    for rate in self.rates
                ]
            )
        return groups


def _task(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"a task is LENGTH,PAIRS, such as 128,32, not {text!r}")
    return int(parts[0]), int(parts[1])


def _tell(result: "MqarResult") -> None:
    cell = result.cell
    print(
        f"{cell.kind}, width {cell.width}, {cell.task}, rate {cell.learning_rate:g}, seed {cell.seed}: "
        f"{result.accuracy:.1%} after {result.trained:,} steps, {result.seconds:.0f} s",
        flush=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Loss by position far beyond the trained length, on a text that no model has seen.

    The text is read in windows of --length tokens, each from an empty state; the rest that fills no window is left out.
    Each curve is in OUT/curves.json as soon as it is measured: the same command goes on with what is missing.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of trained models."""
    text: Annotated[Path, tyro.conf.arg(name="text", metavar="FILE")]
    """A text in UTF-8."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for results.md, loss_by_position.png and curves.json."""
    length: int = 32768
    """Tokens in a window."""
    windows: int = 0
    """Read no more than so many, from the start of the text; 0 for all. Attention takes time with the square of the
    length: a window of 32,768 takes a model of 5 million parameters about a minute on one core."""
    rope: Annotated[tuple[str, ...], tyro.conf.arg(metavar="rescale=4,rebase=1")] = ()
    """Models with rotary positions are read once more with each of these interpolations."""

    def run(self) -> None:
        """Measure what is missing, then write the report."""
        if not self.runs:
            raise UserError("name the folders of trained models")
        if self.length < 1 or self.windows < 0:
            raise UserError("--length must be at least 1, and --windows not negative")
        try:
            text = self.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.text}: {error}") from error
        interpolations = [_interpolation(words) for words in self.rope]

        from goldfinch.experiments.position import RESULTS, measure_curves, write_position_report

        curves = measure_curves(self.runs, text, self.length, self.windows, interpolations, self.output, _tell_window)
        write_position_report(curves, self.text.name, self.output)
        print(f"written: {self.output / RESULTS} and its plot")


def _interpolation(text: str) -> "RopeConfig":
    from goldfinch.cli.rope import parse_rope
    from goldfinch.config import RopeConfig

    rope = parse_rope(text, name="--rope")
    if rope is None or rope.base != RopeConfig().base:
        raise UserError(f"--rope {text}: only rescale and rebase interpolate, such as rescale=4")
    return rope


def _tell_window(curve: "Curve", done: int, windows: int) -> None:
    print(f"{curve.name}: {done} of {windows} windows read", flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The paper's smaller experiments, at a scale that two cores allow."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Mqar, tyro.conf.subcommand("mqar")] | Annotated[Position, tyro.conf.subcommand("position")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Experiment, "experiment", args).command.run()
