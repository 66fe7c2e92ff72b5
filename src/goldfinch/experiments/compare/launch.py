"""Running several training runs, each in a process of its own: started, resumed, stopped, never run twice."""

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

from goldfinch.errors import UserError
from goldfinch.experiments.compare.runs import Progress, read_progress
from goldfinch.training.interruption import Interrupted, stop_signals
from goldfinch.training.run.folder import SETTINGS

POLL_SECONDS = 0.2
SHOWN_LOG_LINES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run to be trained."""

    name: str
    """Name of the model."""
    seed: int
    """Random seed of weights and data order."""
    folder: Path
    """Output folder of `goldfinch train`."""
    train_args: tuple[str, ...]
    """Arguments of `goldfinch train` that start it."""
    resume_args: tuple[str, ...]
    """Arguments that resume it."""
    steps: int
    """Total number of optimizer steps."""

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.folder.with_suffix(".log")


State = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclasses.dataclass(kw_only=True)
class Status:
    """How far a run has come."""

    spec: RunSpec
    state: State
    progress: Progress
    """From its metrics."""
    began: tuple[float, int] | None = None
    """Clock and step when this process started it."""

    @property
    def seconds_per_step(self) -> float | None:
        """Since it was started here; None before the first steps are done."""
        if self.began is None or self.progress.step <= self.began[1]:
            return None
        return (time.monotonic() - self.began[0]) / (self.progress.step - self.began[1])

    @property
    def steps_left(self) -> int:
        """Optimizer steps to go."""
        left = max(self.spec.steps - self.progress.step, 0)
        return left if self.state in ("waiting", "running", "stopped") else 0


class ProgressListener(Protocol):
    """Called while the runs are training."""

    def update(self, statuses: Sequence[Status]) -> None:
        """Called several times a second."""

    def run_ended(self, status: Status, log_end: str) -> None:
        """A run has finished or failed; `log_end` are the last lines of its log."""


def seconds_left(statuses: Sequence[Status], jobs: int) -> float | None:
    """Estimated time until all runs are done; None while no speed is known."""
    known = {status.spec.name: speed for status in statuses if (speed := status.seconds_per_step) is not None}
    if not known:
        return None
    mean = sum(known.values()) / len(known)
    seconds = [status.steps_left * known.get(status.spec.name, mean) for status in statuses]
    return max(sum(seconds) / jobs, *seconds)


def run_all(specs: Sequence[RunSpec], jobs: int, listener: ProgressListener) -> list[Status]:
    """Run what is not finished, `jobs` at a time, in the order given; they share the CPU cores.

    Ctrl-C and SIGTERM save and stop every run; a second Ctrl-C stops them at once. If a run fails, the others continue.

    Returns:
        How each run ended: finished or failed.

    Raises:
        Interrupted: the user stopped it; all runs have saved.
        UserError: another process is training one of the runs.
    """
    statuses = [_status(spec) for spec in specs]
    waiting = [status for status in statuses if status.state == "waiting"]
    running: list[tuple[Status, subprocess.Popen[bytes]]] = []
    try:
        with stop_signals() as stop:
            while (waiting or running) and not stop.is_set():
                while waiting and len(running) < jobs:
                    status = waiting.pop(0)
                    running.append((status, _start(status, jobs)))
                running = [(status, process) for status, process in running if not _ended(status, process, listener)]
                listener.update(statuses)
                time.sleep(POLL_SECONDS)  # not stop.wait, which a signal can block forever
            stopped = stop.is_set()
            if stopped:
                for _, process in running:
                    process.send_signal(signal.SIGTERM)
                for status, process in running:
                    process.wait()
                    status.state = "stopped"
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    if stopped:
        listener.update(statuses)
        raise Interrupted("stopped, all runs saved; the same command resumes them")
    return statuses


def _status(spec: RunSpec) -> Status:
    progress = read_progress(spec.folder)
    done = progress.step >= spec.steps and progress.validated == progress.step
    return Status(spec=spec, state="finished" if done else "waiting", progress=progress)


def _start(status: Status, jobs: int) -> subprocess.Popen[bytes]:
    spec = status.spec
    started = (spec.folder / SETTINGS).exists()
    arguments = spec.resume_args if started else spec.train_args
    threads = max(1, _cores() // jobs)
    spec.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(spec) as lock, spec.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "goldfinch", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            # Otherwise Ctrl-C would reach it twice, from the terminal and from us: once means save, twice means now.
            start_new_session=True,
            # The lock is held as long as any process has the file open, even if this one is killed.
            pass_fds=[lock.fileno()],
        )
    status.state, status.began = "running", (time.monotonic(), status.progress.step)
    return process


@contextlib.contextmanager
def _lock(spec: RunSpec) -> Iterator[IO[bytes]]:
    """Lock a file next to the run, which only one process can do."""
    path = spec.folder.with_suffix(".lock")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training {spec.folder}: wait for it, or stop it") from None
        yield file


def _ended(status: Status, process: subprocess.Popen[bytes], listener: ProgressListener) -> bool:
    """Update the status; whether the run has ended."""
    code = process.poll()
    status.progress = read_progress(status.spec.folder)
    if code is None:
        return False
    status.state = "failed" if code else "finished"
    lines = status.spec.log.read_text(encoding="utf-8", errors="replace").splitlines()
    listener.run_ended(status, "\n".join(lines[-SHOWN_LOG_LINES:]))
    return True


def _cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
