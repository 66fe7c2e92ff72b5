"""Progress displays for training and reading."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from goldfinch.cli.terminal import shown
from goldfinch.cli.units import clock, plural

if TYPE_CHECKING:
    from goldfinch.data.prepare import Progress as PrepareProgress
    from goldfinch.experiments.position import Curve
    from goldfinch.training.config import TrainConfig
    from goldfinch.training.loss import Validation

# Narrower terminals show no bar.
WIDE = 80
SECONDS_BEFORE_PROGRESS = 1.0
SECONDS_BETWEEN_LINES = 10.0
# Bad documents that are shown one by one; the rest are counted.
SHOWN_ERRORS = 20


class _TimeLeft(ProgressColumn):
    """Such as "3:25 left"; narrow terminals leave it whole."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("-:-- left" if left is None else f"{clock(left)} left")


class _Display:
    """A live bar in a terminal; a line now and then where output goes to a file or a pipe.

    Args:
        console: where it appears.
        done: how far it is, such as "step 3 of 10"; the time left follows.
        facts: what comes next, most important first: narrow terminals cut the end, and show no bar.
        transient: whether it disappears at the end.
    """

    def __init__(self, console: Console, done: str, *facts: str, transient: bool = False) -> None:
        self._console = console
        is_wide = console.width >= WIDE
        self._bar = Progress(
            TextColumn(done),
            _TimeLeft(),
            *map(TextColumn, facts),
            *([BarColumn(bar_width=20), TimeElapsedColumn()] if is_wide else []),
            console=console,
            disable=not console.is_terminal,
            transient=transient,
            speed_estimate_period=60,
        )
        self._started = self._last_line = time.monotonic()

    def _line_is_due(self) -> bool:
        """Whether it is time to print another line, where no bar is shown."""
        now = time.monotonic()
        due = not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES
        if due:
            self._last_line = now
        return due

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class TrainingDisplay(_Display):
    """Steps, loss, validation and samples of a run."""

    def __init__(self, samples: bool = True) -> None:
        super().__init__(
            Console(highlight=False),
            "step {task.fields[step]:,} of {task.fields[steps]:,}",
            "loss [bold]{task.fields[loss]}[/]",
            "{task.fields[speed]} tokens/s{task.fields[skipped]}",
        )
        self._samples = samples
        fields: dict[str, Any] = {"step": 0, "steps": 0, "loss": "-", "speed": "-", "skipped": ""}
        self._task = self._bar.add_task("training", total=1.0, start=False, visible=False, **fields)
        self._done_before, self._steps = 0.0, 0

    def start(self, config: "TrainConfig", step: int, steps: int) -> None:
        """Show the bar."""
        self._started = time.monotonic()
        self._done_before, self._steps = step / steps, steps
        self._bar.update(self._task, completed=self._done_before, step=step, steps=steps, visible=True)
        self._bar.start_task(self._task)
        if step >= steps:
            self.notice(
                f"{config.output}: all {plural(steps, 'step')} are done; to train further, add --steps or --epochs"
            )
            return
        verb = f"resuming after step {step:,} of" if step else "training"
        tokens = config.batch_size * config.sequence_length
        self._console.print(f"{verb} {plural(steps, 'step')} of {tokens:,} tokens each -> {config.output}")
        if config.compile:
            self._console.print("compiling the blocks in the first step ...")

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(shown(text), markup=False, soft_wrap=True)

    def compiled(self, seconds: float) -> None:
        """Print a line above the bar."""
        self._console.print(f"compile is on: it took {max(seconds, 0):.0f} s of the first step")

    def step(self, record: dict[str, Any], done: float) -> None:
        """Move the bar."""
        loss = f"{record['loss']:.3f}" if "loss" in record else "not finite"
        speed = f"{record['tokens_per_second']:,.0f}"
        skipped = f"  {record['skipped_steps']:,} skipped" if record["skipped_steps"] else ""
        self._bar.update(self._task, completed=done, step=record["step"], loss=loss, speed=speed, skipped=skipped)
        if self._line_is_due():
            left = (time.monotonic() - self._started) / (done - self._done_before) * (1 - done)
            place = f"step {record['step']:,} of {self._steps:,}  {clock(left)} left"
            print(f"{place}  loss {loss}  {speed} tokens/s{skipped}", flush=True)

    def validation(self, step: int, result: "Validation") -> None:
        """Print a line above the bar."""
        self._console.print(
            f"step {step:,}: validation {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte "
            f"({result.extent})"
            + "".join(f"; {escape(shown(name))} {each.loss:.4f}" for name, each in result.sources.items()),
            soft_wrap=True,
        )
        sys.stdout.flush()

    def sample(self, step: int, text: str) -> None:
        """Print the sample above the bar."""
        if self._samples:
            self._console.print(f"[dim]step {step:,} writes:[/] {escape(shown(text.strip()))}", soft_wrap=True)


class ReadingDisplay(_Display):
    """Progress of reading files, on stderr.

    Args:
        total: bytes of all files; None if unknown.
    """

    def __init__(self, total: int | None) -> None:
        super().__init__(
            errors_console(),
            "reading {task.percentage:.0f}%" if total else "reading",
            "[bold]{task.fields[tokens]:,}[/] tokens",
            "{task.fields[speed]:,.0f} tokens/s",
            transient=True,
        )
        self.tokens = 0
        """Tokens read so far."""
        self._total = total
        self._task = self._bar.add_task("reading", total=total, tokens=0, speed=0.0)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)

    def advance(self, tokens: int, position: float) -> None:
        """Add `tokens`, which end at about this byte of all files."""
        self.tokens += tokens
        self._bar.update(self._task, completed=position, tokens=self.tokens, speed=self.speed)
        if self._line_is_due():
            line = f"{self.tokens:,} tokens  {self.speed:,.0f} tokens/s"
            if self._total and position:
                left = self.seconds / position * (self._total - position)
                line = f"{position / self._total:.0%}  {clock(left)} left  {line}"
            self._console.print(f"reading {line}")


class FirstPassDisplay:
    """Progress of the first pass of the GOLD layers over an opened context, on stderr, if it takes more than a second.

    One line that is written over and cleared at the end: an answer follows, or Ctrl-C at any moment.
    """

    def __init__(self) -> None:
        self._console = errors_console()
        self._started: float | None = None
        self._last_line = 0.0
        self._shown = 0  # characters

    def advance(self, done: float) -> None:
        """Show which fraction of it is done."""
        now = time.monotonic()
        if self._started is None:
            self._started = self._last_line = now
        if done >= 1:
            if self._shown:
                self._console.print(" " * self._shown, end="\r")
            return
        seconds = now - self._started
        line = f"reading the compressed keys: {done:.0%}  {clock(seconds * (1 - done) / done)} left"
        if self._console.is_terminal and seconds >= SECONDS_BEFORE_PROGRESS:
            self._shown = max(self._shown, len(line))
            self._console.print(line.ljust(self._shown), end="\r")
        elif not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._console.print(line)


class WindowsDisplay(_Display):
    """Progress of reading a text in windows, curve by curve, on stderr."""

    def __init__(self) -> None:
        done = "window {task.completed:.0f} of {task.total:.0f}"
        super().__init__(errors_console(), done, "{task.description}", transient=True)
        self._task = self._bar.add_task("", total=None, visible=False)
        self._curve = ""

    def advance(self, curve: "Curve", done: int, windows: int) -> None:
        """Say how many windows of a curve are read."""
        name = shown(curve.name, sys.stderr)
        if name != self._curve:
            self._curve = name
            self._bar.reset(self._task, total=windows, description=escape(name), visible=True)
        self._bar.update(self._task, completed=done)
        if self._line_is_due() or done == windows:
            self._console.print(f"{name}: window {done} of {windows}")


class PreparingDisplay(_Display):
    """Progress of `goldfinch data prepare`, on stderr."""

    def __init__(self) -> None:
        super().__init__(errors_console(), "{task.description}", "{task.percentage:>3.0f}%", transient=True)
        self._task = self._bar.add_task("", total=None)

    def start(self, description: str) -> None:
        """The next part begins."""
        self._started = time.monotonic()
        self._bar.reset(self._task, description=description)
        if not self._console.is_terminal:
            self._console.print(f"{description} ...")

    def advance(self, progress: "PrepareProgress") -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=progress.bytes_read, total=progress.bytes_total)
        if self._line_is_due() and progress.bytes_read:
            left = (time.monotonic() - self._started) / progress.bytes_read * progress.bytes_total
            done = progress.bytes_read / progress.bytes_total
            self._console.print(f"{done:.0%}  {clock(left * (1 - done))} left  {progress.tokens:,} tokens")


class SkippedDocuments:
    """Reports bad documents: the first ones one by one, then their number (an `on_error` for `read_documents`)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._count = 0

    def __call__(self, message: str) -> None:
        """Report one."""
        self._count += 1
        if self._count <= SHOWN_ERRORS:
            self._console.print(shown(f"skipped {message}", self._console.file))

    def finish(self) -> None:
        """Report the number of the rest."""
        if self._count > SHOWN_ERRORS:
            self._console.print(f"skipped {self._count - SHOWN_ERRORS:,} more")


def errors_console() -> Console:
    """stderr, for lines as they are: file names may look like markup."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
