"""`goldfinch compare`: several models, the same data, one table."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from goldfinch.cli.arguments import parse_known
from goldfinch.cli.progress import WIDE
from goldfinch.cli.terminal import shown
from goldfinch.cli.train import resolve
from goldfinch.cli.units import clock
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from goldfinch.experiments.compare.launch import RunSpec, Status
    from goldfinch.experiments.compare.summary import ModelSummary
    from goldfinch.training.config import TrainConfig

SECONDS_BETWEEN_LINES = 30.0
# Columns of the table that fit 80 characters; results.md has all of them.
_IN_TERMINAL = ("model", "loss", "bits per byte", "tokens/s", "cache B/token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several models on the same data and compare them in one table.

    `goldfinch compare MODEL... --data DIR -o OUT [any setting of goldfinch train]` trains each model with each seed, in
    processes of their own. Runs with the same seed see the same batches. Models get the same number of parameters
    outside embedding and head, by the width of their channel mixes, unless the recipe or --model.channel-width sets it.
    Each OUT/NAME/seed-N is an ordinary training run. Ctrl-C saves and stops all of them; the same command resumes what
    is not finished, and never repeats what is.

    `goldfinch compare OUT` writes the report for existing runs: results.md, loss_by_token.png, loss_by_position.png.
    Weights are measured once; the results are kept in measurements.json.
    """

    names: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL ... | OUT")]] = ()
    """Models to train: presets such as llama-L6-D256, or recipes such as compare/L6-D256-goldfinch. Or one folder of
    runs to report on."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR ...")] = ()
    """Training data, as for goldfinch train. For a report: where the data is now, if it has moved."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None
    """Folder for runs, table and plots. For a report: folder for table and plots only (default: the folder of runs)."""
    num_seeds: int = 3
    """Runs per model, with seeds 0, 1, ..."""
    jobs: int = 2
    """Runs at the same time, which share the CPU cores. Use 1 on a single GPU."""
    non_embedding_parameters: int = 5_000_000
    """Number of parameters outside embedding and head that all models get; 0 leaves models as they are."""
    json: bool = False
    """Print the results as JSON instead of a table; progress goes to standard error."""

    def run(self, settings: list[str]) -> None:
        """Train what is not finished, then report.

        Args:
            settings: flags of `goldfinch train`.
        """
        if len(self.names) == 1 and Path(self.names[0]).is_dir():
            if settings:
                raise UserError(f"{self.names[0]} is a folder of runs to report on: {settings[0]} is for training")
            self._report(Path(self.names[0]), self.output, self.data)
            return
        if not self.names:
            raise UserError("name the models to train, such as goldfinch-L6-D256 llama-L6-D256, or a folder of runs")
        if self.output is None:
            raise UserError("name the output folder: -o OUT")
        if self.num_seeds < 1 or self.jobs < 1:
            raise UserError("--num-seeds and --jobs must be at least 1")
        data = ["--data", *self.data] if self.data else []
        for name in self.names:  # before torch is imported
            resolve([*(["--recipe", name] if "/" in name else [name]), *data, *settings, "-o", str(self.output)])
        specs = self.specs(self.output, settings)
        if any("--model.channel-width" in spec.train_args for spec in specs) and self.non_embedding_parameters:
            self._console().print(
                f"presets get the channel width that gives {self.non_embedding_parameters:,} parameters without "
                "embedding and head; --non-embedding-parameters 0 keeps their own"
            )

        from goldfinch.experiments.compare.launch import run_all

        with CompareDisplay(self.jobs, self._console()) as display:
            statuses = run_all(specs, self.jobs, display)
        failed = [status.spec for status in statuses if status.state == "failed"]
        if len(failed) < len(statuses):
            self._report(self.output, None, ())
        if failed:
            logs = ", ".join(str(spec.log) for spec in failed)
            raise UserError(f"{len(failed)} of {len(statuses)} runs failed ({logs}); the same command tries them again")

    def specs(self, output: Path, settings: list[str]) -> "list[RunSpec]":
        """All runs, checked before any of them starts; seed by seed, so that early results compare all models.

        Raises:
            UserError: an unknown model or setting, models that would not see the same data, or a run in the output
                folder that was started with other settings.
        """
        from goldfinch.experiments.compare.checks import check_same_batches, check_same_run
        from goldfinch.experiments.compare.launch import RunSpec
        from goldfinch.experiments.compare.match_parameters import match_parameters
        from goldfinch.training.parallel.processes import SINGLE_PROCESS
        from goldfinch.training.run.data import RunData

        if "--seed" in settings or "--resume" in settings:
            raise UserError("compare sets the seeds and resumes by itself: give --num-seeds, or repeat the command")
        data = ["--data", *self.data] if self.data else []
        specs: list[RunSpec] = []
        first: TrainConfig | None = None
        for seed in range(self.num_seeds):
            for recipe in self.names:
                name = recipe.rpartition("/")[2]
                folder = output / name / f"seed-{seed}"
                model = ["--recipe", recipe] if "/" in recipe else [recipe]
                flags = [*data, *settings, "--seed", str(seed)]
                config = resolve([*model, *flags, "-o", str(folder)]).settings
                if config.model.channel_width == 0 and self.non_embedding_parameters:
                    width = match_parameters(config.model, self.non_embedding_parameters).channel_width
                    flags += ["--model.channel-width", str(width)]
                    config = resolve([*model, *flags, "-o", str(folder)]).settings
                first = first or config
                check_same_batches(name, config, first)
                check_same_run(folder, config)
                specs.append(
                    RunSpec(
                        name=name,
                        seed=seed,
                        folder=folder,
                        train_args=(*model, *flags, "-o", str(folder)),
                        resume_args=("--resume", str(folder), *flags),
                        steps=RunData(config, SINGLE_PROCESS).steps,
                    )
                )
        if len({spec.folder for spec in specs}) < len(specs):
            raise UserError(f"a model is named twice: {' '.join(self.names)}")
        return specs

    def _console(self) -> "Console":
        from rich.console import Console

        return Console(highlight=False, stderr=self.json)

    def _report(self, folder: Path, output: Path | None, data: tuple[str, ...]) -> None:
        from rich.markup import escape

        from goldfinch.experiments.compare.measure import label, measure_runs
        from goldfinch.experiments.compare.report import RESULTS, write_report
        from goldfinch.experiments.compare.runs import find_runs

        console = self._console()
        output = output or folder
        runs = find_runs(folder)
        finished = [run for run in runs if run.final is not None]
        measured = measure_runs(
            finished, output, data, lambda run: console.print(f"measuring {escape(label(run))} ...")
        )
        models = write_report(runs, measured, output)
        if self.json:
            print(json.dumps([model.to_dict() for model in models], indent=1))
        else:
            _print_table(models, console)
        if len(finished) < len(runs):
            console.print(f"{len(runs) - len(finished)} of {len(runs)} runs are not finished and not in the table.")
        console.print(f"report: {escape(str(output / RESULTS))} and its plots", soft_wrap=True)


def main(args: list[str]) -> None:
    """Parse `args` and run; flags that are not our own are those of `goldfinch train`."""
    command, settings = parse_known(Compare, "compare", args)
    command.run(settings)


def _print_table(models: "Sequence[ModelSummary]", console: "Console") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from goldfinch.experiments.compare.report import HEADINGS, table_row

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [index for index, heading in enumerate(HEADINGS) if heading in _IN_TERMINAL]
    for index in shown:
        table.add_column(HEADINGS[index], justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for model in models:
        line = table_row(model)
        table.add_row(*(escape(line[index]) for index in shown))
    console.print(table)


class CompareDisplay:
    """Shows all runs and the time left: a live table in a terminal, occasional lines elsewhere."""

    def __init__(self, jobs: int, console: "Console") -> None:
        from rich.live import Live

        self._jobs = jobs
        self._console = console
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last_line = time.monotonic() - SECONDS_BETWEEN_LINES

    def __enter__(self) -> "CompareDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, statuses: "Sequence[Status]") -> None:
        """Redraw the table, or print lines from time to time."""
        if self._live is not None:
            self._live.update(self._table(statuses), refresh=True)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            for status in statuses:
                if status.state == "running":
                    self._console.print(f"{_label(status)}: {', '.join(_facts(status))}", markup=False)
            self._console.print(self._summary(statuses), markup=False)

    def run_ended(self, status: "Status", log_end: str) -> None:
        """Print how a run ended."""
        if status.state == "failed":
            self._console.print(f"{_label(status)} failed; last lines of {status.spec.log}:", markup=False)
            self._console.print(shown(log_end, self._console.file), markup=False, soft_wrap=True)
        else:
            line = f"{_label(status)} finished: {', '.join(_facts(status))}"
            self._console.print(line, markup=False, soft_wrap=True)
        if self._live is None:
            sys.stdout.flush()

    def _summary(self, statuses: "Sequence[Status]") -> str:
        from goldfinch.experiments.compare.launch import seconds_left

        done = sum(status.state == "finished" for status in statuses)
        left = seconds_left(statuses, self._jobs)
        return f"{done} of {len(statuses)} runs finished" + (f", {clock(left)} left" if left else "")

    def _table(self, statuses: "Sequence[Status]") -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=self._summary(statuses), caption_justify="left")
        # Narrow terminals show the first ones.
        headings = ("run", "", "step", "left", "loss", "validation", "tokens/s")[
            : 7 if self._console.width >= WIDE else 5
        ]
        for heading in headings:
            table.add_column(
                heading,
                justify="left" if heading in ("run", "") else "right",
                no_wrap=heading != "run",
                overflow="fold",
            )
        for status in statuses:
            progress = status.progress
            speed = status.seconds_per_step if status.state == "running" else None
            cells = (
                Text(_label(status)),
                status.state,
                f"{progress.step:,} of {status.spec.steps:,}",
                clock(speed * status.steps_left) if speed is not None else "",
                f"{progress.loss:.3f}" if progress.loss is not None else "",
                f"{progress.validation_loss:.4f}" if progress.validation_loss is not None else "",
                f"{progress.tokens_per_second:,.0f}" if progress.tokens_per_second is not None else "",
            )
            table.add_row(*cells[: len(headings)])
        return table


def _label(status: "Status") -> str:
    return f"{status.spec.name}, seed {status.spec.seed}"


def _facts(status: "Status") -> list[str]:
    progress, facts = status.progress, []
    facts.append(f"step {progress.step:,} of {status.spec.steps:,}")
    if progress.loss is not None and status.state == "running":
        facts.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        facts.append(f"validation {progress.validation_loss:.4f}")
    if progress.tokens_per_second is not None:
        facts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return facts
