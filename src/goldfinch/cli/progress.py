"""What a person sees while a model trains."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from goldfinch.training.config import TrainConfig
    from goldfinch.training.loss import Validation

SECONDS_BETWEEN_LINES = 10.0


class TrainingDisplay:
    """A live bar in a terminal; a line now and then where output goes to a file or a pipe."""

    def __init__(self, samples: bool = True) -> None:
        self._console = Console(highlight=False)
        self._samples = samples
        self._bar = Progress(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TextColumn("loss [bold]{task.fields[loss]}[/]  {task.fields[speed]} tokens/s "),
            TimeElapsedColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task("training", total=1.0, start=False, visible=False, step=0, loss="-", speed="-")
        self._started = self._last_line = time.monotonic()
        self._done_before = 0.0

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, config: "TrainConfig", step: int, steps: int) -> None:
        """Show the bar."""
        self._started = time.monotonic()
        self._done_before = step / steps
        self._bar.update(self._task, completed=self._done_before, step=step, visible=True)
        self._bar.start_task(self._task)
        verb = f"resuming after step {step:,} of" if step else "training"
        tokens = config.batch_size * config.context
        self._console.print(f"{verb} {steps:,} steps of {tokens:,} tokens each -> {config.output}")

    def step(self, record: dict[str, Any], done: float) -> None:
        """Move the bar."""
        loss, speed = f"{record['loss']:.3f}", f"{record['tokens_per_second']:,.0f}"
        self._bar.update(self._task, completed=done, step=record["step"], loss=loss, speed=speed)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._started) / (done - self._done_before) * (1 - done)
            print(f"step {record['step']:,}  {done:.0%}  loss {loss}  {speed} tokens/s  {clock(left)} left", flush=True)

    def validation(self, step: int, result: "Validation") -> None:
        """Print a line above the bar."""
        self._console.print(
            f"step {step:,}: validation {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte"
        )
        sys.stdout.flush()

    def sample(self, step: int, text: str) -> None:
        """Print the sample above the bar."""
        if self._samples:
            self._console.print(f"[dim]step {step:,} writes:[/] {escape(' '.join(text.split()))}")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
