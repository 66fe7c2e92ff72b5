"""Runs of several real processes that talk through gloo, forked from one that has loaded torch already."""

import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIME_LIMIT = 240  # seconds, for those that hang
# What takes seconds to load.
PRELOADED = ["goldfinch.training.trainer", "goldfinch.cli.train", "torch._dynamo", "matplotlib.backends.backend_agg"]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the processes ended."""

    exit_codes: list[int]
    """Negative for the number of a signal."""
    printed: list[str]
    """Output and errors of each."""


def goldfinch(count: int, args: list[str], folder: Path, fault: Callable[[int], None] | None = None) -> Ended:
    """Run `goldfinch ARGS` in `count` processes as torchrun starts them; when one dies, so do the others, as there.

    Args:
        count: of processes.
        args: of the command line.
        folder: for what they print.
        fault: a function of a module, called in each process with its rank before the command.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    logs = [folder / f"process-{rank}.txt" for rank in range(count)]
    started = [
        context.Process(target=_one, args=(rank, count, port, list(map(str, args)), logs[rank], fault))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    waiting = {process.sentinel: process for process in started}
    while waiting:
        ended = multiprocessing.connection.wait(list(waiting), timeout=TIME_LIMIT)
        if not ended:
            for process in started:
                process.kill()
            raise TimeoutError(f"after {TIME_LIMIT} s still there; printed: {[log.read_text() for log in logs]}")
        for sentinel in ended:
            waiting.pop(sentinel).join()
    return Ended([process.exitcode for process in started], [log.read_text() for log in logs])


def _one(rank, count, port, args, log, fault):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())

    import torch

    from goldfinch.cli.main import run

    torch.set_num_threads(1)
    if fault is not None:
        fault(rank)
    code = run(args)
    sys.stdout.flush()
    sys.exit(code)


@dataclasses.dataclass
class AtStep:
    """A fault: `act` in process `rank`, given the trainer, when step `step` has its gradient.

    What it returns, if anything, takes the place of the loss.
    """

    step: int
    rank: int
    act: Callable[[Any], float | None]

    def __call__(self, rank: int) -> None:
        from goldfinch.training import trainer

        if rank != self.rank:
            return
        accumulate, train = trainer.accumulate, trainer.Trainer.train
        running = []

        def patched_accumulate(*args):
            loss = accumulate(*args)
            replaced = self.act(running[0]) if running[0]._progress.step + 1 == self.step else None
            return loss if replaced is None else replaced

        def patched_train(itself):
            running.append(itself)
            return train(itself)

        trainer.accumulate, trainer.Trainer.train = patched_accumulate, patched_train


def kill(trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def spike(trainer: Any) -> float:
    return float("inf")


def break_a_weight(trainer: Any) -> None:
    import torch

    with torch.no_grad():
        trainer._parameters["blocks.1.time_mix.output.weight"].to_local()[-1, -1] = float("nan")


def break_a_gradient(trainer: Any) -> None:
    trainer._parameters["head.weight"].grad.to_local()[-1, -1] = float("inf")


@dataclasses.dataclass
class InSave:
    """A fault: half of a process's file of the checkpoint of `step` is written, then `act`."""

    step: int
    ranks: tuple[int, ...]
    act: Callable[[], None]

    def __call__(self, rank: int) -> None:
        from goldfinch.checkpoint import safetensors_file

        save_file = safetensors_file.save_file

        def patched(tensors, path, metadata=None):
            if rank in self.ranks and path.parent.parent.name == f".step-{self.step:08d}.tmp":
                path.write_bytes(b"half of it")
                self.act()
            save_file(tensors, path, metadata)

        safetensors_file.save_file = patched


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def find_the_disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
