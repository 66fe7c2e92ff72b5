"""`goldfinch compare`: several models, the same data, one table."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.train import resolve
from goldfinch.cli.units import clock
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.experiments.compare.launch import Entry, Status
    from goldfinch.experiments.compare.summary import Row
    from goldfinch.training.config import TrainConfig

SECONDS_BETWEEN_LINES = 30.0
# Columns of the table that fit 80 characters; results.md has all.
_IN_TERMINAL = ("model", "loss", "bits per byte", "tokens/s", "cache B/token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several models on the same data and put them into one table.

    `goldfinch compare RECIPE... --data DIR -o OUT [any setting of goldfinch train]` trains each model with each seed,
    in processes of their own. Runs of one seed see the same batches. Models are matched: the width inside their
    channel mixes is chosen so that all have as many parameters outside embedding and head, unless the recipe or
    --model.channel-width says it. Each OUT/NAME/seed-N is an ordinary run. Ctrl-C lets all of them save; the same
    command goes on with what is not finished, and never repeats what is.

    `goldfinch compare OUT` draws table and plots of what is there: results.md, loss_by_token.png,
    loss_by_position.png. The weights are measured once; measurements.json remembers the figures.
    """

    names: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(name="RECIPE|OUT")]] = ()
    """Recipes such as arena/L6-D256-goldfinch, or presets such as llama-L6-D256, to train; or one folder of runs to
    report on. They come before all flags."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR")] = ()
    """As of goldfinch train. For a report: where the data is now, if it has moved."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for runs, table and plots. For a report: for table and plots alone; OUT itself if not given."""
    seeds: int = 3
    """Runs of each model: seeds 0, 1 ..."""
    jobs: int = 2
    """Runs at once; the processor's cores are shared out between them. On a single GPU choose 1."""
    non_embedding_parameters: int = 5_000_000
    """Parameters outside embedding and head that models are matched to; 0 to leave them as they are."""


def main(args: list[str]) -> None:
    """Train what is not finished, then report."""
    command, settings = _parse(args)
    if len(command.names) == 1 and Path(command.names[0]).is_dir():
        if settings:
            raise UserError(f"{command.names[0]} is a folder of runs to report on: {settings[0]} is for training")
        _report(Path(command.names[0]), command.output, command.data)
        return
    if not command.names:
        raise UserError("name the models to train, such as goldfinch-L6-D256 llama-L6-D256, or a folder of runs")
    if command.output is None:
        raise UserError("say where the runs go: -o OUT")
    if command.seeds < 1 or command.jobs < 1:
        raise UserError("--seeds and --jobs must be at least 1")
    entries = _entries(command, settings)

    from goldfinch.experiments.compare.launch import run_all

    with ArenaDisplay(command.jobs) as display:
        statuses = run_all(entries, command.jobs, display)
    failed = [status.entry for status in statuses if status.state == "failed"]
    if len(failed) < len(statuses):
        _report(command.output, None, ())
    if failed:
        logs = ", ".join(str(entry.log) for entry in failed)
        raise UserError(f"{len(failed)} of {len(statuses)} runs failed ({logs}); the same command tries them again")


def _parse(args: list[str]) -> tuple[Compare, list[str]]:
    """Our own flags, and those that go to `goldfinch train` as they are."""
    first_flag = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args))
    names, flags = args[:first_flag], args[first_flag:]
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Compare)} | {"-o", "-h", "--help"}
    ours: list[str] = list(names)
    theirs: list[str] = []
    target = ours
    for arg in flags:
        if arg.startswith("-") and not arg[1:2].isdigit():
            target = ours if arg.partition("=")[0].replace("_", "-") in own else theirs
        target.append(arg)
    return parse(Compare, "compare", ours), theirs


def _entries(command: Compare, settings: list[str]) -> "list[Entry]":
    """All runs, each checked before any of them begins; seed by seed, so that early results compare all models.

    Raises:
        UserError: a model or setting that is none, models that would not see the same data, or a run in the output
            folder that was begun with other settings.
    """
    from goldfinch.experiments.compare.launch import Entry
    from goldfinch.experiments.compare.match_parameters import match_parameters
    from goldfinch.training.parallel.processes import SINGLE_PROCESS
    from goldfinch.training.run.data import RunData

    assert command.output is not None
    if "--seed" in settings or "--resume" in settings:
        raise UserError("compare chooses seeds and resumes by itself: give --seeds, and the same command again")
    data = ["--data", *command.data] if command.data else []
    entries: list[Entry] = []
    first: TrainConfig | None = None
    for seed in range(command.seeds):
        for recipe in command.names:
            name = recipe.rpartition("/")[2]
            folder = command.output / name / f"seed-{seed}"
            model = ["--recipe", recipe] if "/" in recipe else [recipe]
            flags = [*data, *settings, "--seed", str(seed)]
            config = resolve([*model, *flags, "-o", str(folder)]).settings
            if config.model.channel_width == 0 and command.non_embedding_parameters:
                width = match_parameters(config.model, command.non_embedding_parameters).channel_width
                flags += ["--model.channel-width", str(width)]
                config = resolve([*model, *flags, "-o", str(folder)]).settings
            first = first or config
            _check_same_batches(name, config, first)
            _check_same_run(folder, config)
            entries.append(
                Entry(
                    name=name,
                    seed=seed,
                    folder=folder,
                    begin=(*model, *flags, "-o", str(folder)),
                    resume=("--resume", str(folder), *flags),
                    steps=RunData(config, SINGLE_PROCESS).steps,
                )
            )
    if len({entry.folder for entry in entries}) < len(entries):
        raise UserError(f"a model is named twice: {' '.join(command.names)}")
    return entries


# What decides which tokens a step sees.
_BATCHES = ("data", "sequence_length", "batch_size", "steps", "epochs", "max_minutes")


def _check_same_batches(name: str, config: "TrainConfig", first: "TrainConfig") -> None:
    for field in _BATCHES:
        ours, theirs = getattr(config, field), getattr(first, field)
        if ours != theirs:
            flag = field.replace("_", "-")
            raise UserError(f"{name} would train with {field} {ours}, the first model with {theirs}: give --{flag}")


def _check_same_run(folder: Path, config: "TrainConfig") -> None:
    """Refuse to go on with a run that was begun with other settings than these."""
    from goldfinch.experiments.compare.runs import read_training
    from goldfinch.training.run.folder import SETTINGS

    if not (folder / SETTINGS).exists():
        return
    stored, wanted = read_training(folder), config.to_dict()
    for field in ("model", "optimizer", *_BATCHES):
        if field in stored:
            _check_same(folder, field, stored[field], wanted[field])


def _check_same(folder: Path, name: str, stored: Any, wanted: Any) -> None:
    """Compare one setting, field by field; fields that another version had in its place are left alone."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for field in stored.keys() & wanted.keys():
            _check_same(folder, f"{name}.{field}", stored[field], wanted[field])
    elif stored != wanted:
        raise UserError(
            f"{folder} was begun with {name} {stored}, not {wanted}: choose another -o, or the same settings"
        )


def _report(arena: Path, output: Path | None, data: tuple[str, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from goldfinch.experiments.compare.measure import label, measure_runs
    from goldfinch.experiments.compare.report import HEADINGS, RESULTS, cells, write_report
    from goldfinch.experiments.compare.runs import find_runs

    console = Console(highlight=False)
    output = output or arena
    runs = find_runs(arena)
    finished = [run for run in runs if run.final is not None]
    measured = measure_runs(finished, output, data, lambda run: console.print(f"measuring {escape(label(run))} ..."))
    models: list[Row] = write_report(runs, measured, output)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [index for index, heading in enumerate(HEADINGS) if heading in _IN_TERMINAL]
    for index in shown:
        table.add_column(HEADINGS[index], justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for row in models:
        line = cells(row)
        table.add_row(*(escape(line[index]) for index in shown))
    console.print(table)
    if len(finished) < len(runs):
        console.print(f"{len(runs) - len(finished)} of {len(runs)} runs are not finished and not in the table.")
    console.print(f"written: {escape(str(output / RESULTS))} and its plots", soft_wrap=True)


class ArenaDisplay:
    """All runs and the time left: a live table in a terminal, lines now and then elsewhere."""

    def __init__(self, jobs: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._jobs = jobs
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last_line = time.monotonic() - SECONDS_BETWEEN_LINES

    def __enter__(self) -> "ArenaDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, statuses: "Sequence[Status]") -> None:
        """Draw the table anew, or print lines where they are due."""
        if self._live is not None:
            self._live.update(self._table(statuses), refresh=True)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            for status in statuses:
                if status.state == "running":
                    print(f"{_label(status)}: {', '.join(_facts(status))}")
            print(self._summary(statuses), flush=True)

    def ended(self, status: "Status", log_end: str) -> None:
        """Tell of one run."""
        if status.state == "failed":
            self._console.print(f"{_label(status)} failed; the end of {status.entry.log}:", markup=False)
            self._console.print(log_end, markup=False, soft_wrap=True)
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
        for heading in ("run", "", "done", "loss", "validation", "tokens/s", "left"):
            table.add_column(heading, justify="left" if heading in ("run", "") else "right", no_wrap=True)
        for status in statuses:
            progress = status.progress
            speed = status.seconds_per_step if status.state == "running" else None
            table.add_row(
                Text(_label(status)),
                status.state,
                f"{progress.step / status.entry.steps:.0%}",
                f"{progress.loss:.3f}" if progress.loss is not None else "",
                f"{progress.validation_loss:.4f}" if progress.validation_loss is not None else "",
                f"{progress.tokens_per_second:,.0f}" if progress.tokens_per_second is not None else "",
                clock(speed * status.steps_left) if speed is not None else "",
            )
        return table


def _label(status: "Status") -> str:
    return f"{status.entry.name}, seed {status.entry.seed}"


def _facts(status: "Status") -> list[str]:
    progress, facts = status.progress, []
    facts.append(f"step {progress.step:,} of {status.entry.steps:,}")
    if progress.loss is not None and status.state == "running":
        facts.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        facts.append(f"validation {progress.validation_loss:.4f}")
    if progress.tokens_per_second is not None:
        facts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return facts
