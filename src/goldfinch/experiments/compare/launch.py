"""Several training runs side by side, each a process of its own: begun, gone on with, stopped, never run twice."""

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
class Entry:
    """One run of the arena: what to train, where."""

    name: str
    """Of the model."""
    seed: int
    """Of its weights and of the order of the data."""
    folder: Path
    """An ordinary run of `goldfinch train`."""
    begin: tuple[str, ...]
    """Arguments of `goldfinch train` that begin it."""
    resume: tuple[str, ...]
    """Arguments that go on with it."""
    steps: int
    """Optimizer steps from beginning to end."""

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_suffix(".log")


State = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclasses.dataclass(kw_only=True)
class Status:
    """How an entry fares."""

    entry: Entry
    state: State
    progress: Progress
    """What its metrics say."""
    began: tuple[float, int] | None = None
    """Clock and step when this process began it."""

    @property
    def seconds_per_step(self) -> float | None:
        """Since it began here; None before the first steps are done."""
        if self.began is None or self.progress.step <= self.began[1]:
            return None
        return (time.monotonic() - self.began[0]) / (self.progress.step - self.began[1])

    @property
    def steps_left(self) -> int:
        """Optimizer steps that are still to be done."""
        left = max(self.entry.steps - self.progress.step, 0)
        return left if self.state in ("waiting", "running", "stopped") else 0


class Observer(Protocol):
    """Told how the runs fare."""

    def watch(self, statuses: Sequence[Status]) -> None:
        """Called some times a second."""

    def ended(self, status: Status, log_end: str) -> None:
        """A run has finished or failed; `log_end` are the last lines of what it printed."""


def seconds_left(statuses: Sequence[Status], jobs: int) -> float | None:
    """Until all runs are done, as fast as they went so far; None while nothing is known."""
    known = {status.entry.name: speed for status in statuses if (speed := status.seconds_per_step) is not None}
    if not known:
        return None
    mean = sum(known.values()) / len(known)
    seconds = [status.steps_left * known.get(status.entry.name, mean) for status in statuses]
    return max(sum(seconds) / jobs, *seconds)


def run_all(entries: Sequence[Entry], jobs: int, observer: Observer) -> list[Status]:
    """Run what is not finished, `jobs` at once, in the order given; the cores are shared out between them.

    Ctrl-C and SIGTERM let every run save and end; a second Ctrl-C ends them at once. A run that fails leaves the others
    alone.

    Returns:
        How each entry ended: finished or failed.

    Raises:
        Interrupted: the user stopped it; all runs have saved.
        UserError: another process is at one of the runs.
    """
    statuses = [_status(entry) for entry in entries]
    waiting = [status for status in statuses if status.state == "waiting"]
    running: list[tuple[Status, subprocess.Popen[bytes]]] = []
    try:
        with stop_signals() as stop:
            while (waiting or running) and not stop.is_set():
                while waiting and len(running) < jobs:
                    status = waiting.pop(0)
                    running.append((status, _start(status, jobs)))
                running = [(status, process) for status, process in running if not _ended(status, process, observer)]
                observer.watch(statuses)
                time.sleep(POLL_SECONDS)  # not stop.wait: a signal in the middle of it could block for ever
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
        observer.watch(statuses)
        raise Interrupted("stopped, all runs saved; the same command goes on with them")
    return statuses


def _status(entry: Entry) -> Status:
    progress = read_progress(entry.folder)
    done = progress.step >= entry.steps and progress.validated == progress.step
    return Status(entry=entry, state="finished" if done else "waiting", progress=progress)


def _start(status: Status, jobs: int) -> subprocess.Popen[bytes]:
    entry = status.entry
    begun = (entry.folder / SETTINGS).exists()
    arguments = entry.resume if begun else entry.begin
    threads = max(1, _cores() // jobs)
    entry.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(entry) as lock, entry.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "goldfinch", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            # Ctrl-C in the terminal would reach it twice, from there and from us: once means save, twice means now.
            start_new_session=True,
            # The lock is held as long as any process has the file open: also when this one is killed.
            pass_fds=[lock.fileno()],
        )
    status.state, status.began = "running", (time.monotonic(), status.progress.step)
    return process


@contextlib.contextmanager
def _lock(entry: Entry) -> Iterator[IO[bytes]]:
    """A file beside the run that only one process may hold."""
    path = entry.folder.with_suffix(".lock")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training {entry.folder}: wait for it, or stop it") from None
        yield file


def _ended(status: Status, process: subprocess.Popen[bytes], observer: Observer) -> bool:
    """Bring the status up to date; whether the run has come to its end."""
    code = process.poll()
    status.progress = read_progress(status.entry.folder)
    if code is None:
        return False
    status.state = "failed" if code else "finished"
    lines = status.entry.log.read_text(encoding="utf-8", errors="replace").splitlines()
    observer.ended(status, "\n".join(lines[-SHOWN_LOG_LINES:]))
    return True


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
