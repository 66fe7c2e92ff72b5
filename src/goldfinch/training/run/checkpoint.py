"""Checkpoints: everything that a run needs to resume as if it had never stopped, on any number of processes."""

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException

from goldfinch.checkpoint.model_folder import check_weights, save_weights
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.settings import from_plain
from goldfinch.training.parallel.processes import Processes
from goldfinch.training.run.checkpoint_storage import (
    CheckpointReader,
    CheckpointWriter,
    Damaged,
    Index,
    read_index,
    temporary_folder,
    verify,
)

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)")
_MODEL, _OPTIMIZER, _DATA = "model/", "optimizer/", "data/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come. The order of stored data is a function of seed and step; streams also have a state."""

    step: int = 0
    """Steps done, skipped ones included."""
    seconds: float = 0.0
    """Time spent training, over all starts."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite, so that they changed nothing."""
    skipped_in_a_row: int = 0
    """The last ones of these, with none between that was not skipped."""

    def after(self, seconds: float, skipped: bool) -> "Progress":
        """One step further, which took so long."""
        return Progress(
            step=self.step + 1,
            seconds=self.seconds + seconds,
            skipped_steps=self.skipped_steps + skipped,
            skipped_in_a_row=self.skipped_in_a_row + 1 if skipped else 0,
        )


class Checkpoints:
    """Writes a run's checkpoints in the background, and removes old ones.

    Args:
        run: folder of the run.
        keep: how many of the newest stay.
        keep_every: checkpoints whose step is a multiple of it are never removed; 0 for none.
        processes: all of them take part in each call.
    """

    def __init__(self, run: Path, keep: int, keep_every: int, processes: Processes) -> None:
        self._run = run
        self._keep = keep
        self._keep_every = keep_every
        self._processes = processes
        # Its own: messages about files must not get between those of a step.
        self._group = dist.new_group(backend="gloo") if processes.world_size > 1 else None
        self._saving: tuple[Path, Future[Any]] | None = None

    def save(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        data: Mapping[str, Tensor],
        weights: dict[str, Tensor],
    ) -> None:
        """Copy everything, then return while it is written to `checkpoints/step-N/`, and then to `model.safetensors`.

        Args:
            parameters: by name; each process's part.
            optimizer: of those that are trained.
            progress: how far the run has come.
            data: the state of the data, `Batches.state`; the same in all processes.
            weights: of the whole model, which process 0 writes for `goldfinch.load`.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        self.wait()
        path = self._run / FOLDER / f"step-{progress.step:08d}"

        def committed() -> None:
            self._remove_old(path)
            save_weights(self._run, weights)

        writer = CheckpointWriter(path, self._processes.rank, dataclasses.asdict(progress), committed)
        tensors = _tensors(parameters, optimizer) | {_DATA + name: tensor for name, tensor in data.items()}
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._saving = path, future

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            UserError: it could not be written; the previous ones are unchanged.
        """
        if self._saving is None:
            return
        path, future = self._saving
        self._saving = None
        try:
            future.result()
        except CheckpointException as error:
            if self._processes.is_main:
                shutil.rmtree(temporary_folder(path), ignore_errors=True)
            rank, (reason, _) = min(error.failures.items(), key=lambda failure: failure[0])
            where = f"process {rank}: " if self._processes.world_size > 1 else ""
            failure = UserError(f"{where}{reason}; the checkpoints before it are complete")
            raise self._processes.error_on_main(failure) from error

    def load(
        self, path: Path, parameters: Mapping[str, nn.Parameter], model: Decoder, optimizer: torch.optim.Optimizer
    ) -> tuple[Progress, dict[str, Tensor]]:
        """Load a checkpoint's weights and optimizer state, each process its part.

        Returns:
            How far the run has come, and the state of the data.

        Raises:
            UserError: the checkpoint is damaged, or of another model.
        """
        with self._processes.fail_together():
            index = _read_whole(path)
            progress = from_plain(Progress, index.progress, "progress.")
            stored = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in index.tensors.items()}
            check_weights(path, _below(_MODEL, stored), model)
            for name, parameter in _trained(parameters, optimizer).items():
                optimizer.state[parameter] = {
                    key: _like(tensor, parameter) for key, tensor in _below(f"{_OPTIMIZER}{name}/", stored).items()
                }
            data = {name: torch.empty_like(tensor, device="cpu") for name, tensor in _below(_DATA, stored).items()}
        tensors = _tensors(parameters, optimizer) | {_DATA + name: tensor for name, tensor in data.items()}
        dcp.load(tensors, storage_reader=CheckpointReader(path, index), process_group=self._group)
        return progress, data

    def _remove_old(self, newest: Path) -> None:
        """Keep `newest` and what the policy keeps of those before it; newer ones are damaged, or would not be there."""
        left = self._keep - 1
        for path in reversed(list_checkpoints(self._run)):
            if path == newest or (self._keep_every and step_of(path) % self._keep_every == 0 and path < newest):
                continue
            if left and path < newest and _is_whole(path):
                left -= 1
            else:
                shutil.rmtree(path)


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name))


def newest_checkpoint(run: Path, notice: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and whose checksums match; None for a run that has none yet.

    Args:
        run: its folder.
        notice: called with a message about each corrupt one that is skipped.

    Raises:
        UserError: there are some, but none is complete and of this version.
    """
    checkpoints = list_checkpoints(run)
    for path in reversed(checkpoints):
        try:
            verify(path, read_index(path))
            return path
        except Damaged as error:
            notice(f"{path} is damaged ({error}): using the one before")
    if checkpoints:
        raise UserError(f"no checkpoint in {run / FOLDER} is complete: remove that folder to start from the first step")
    for old in sorted((run / FOLDER).glob("step-*.safetensors")):
        raise UserError(f"{old} is of an earlier version, which alone can resume it: train into a new output folder")
    return None


def remove_unfinished(run: Path) -> None:
    """Remove what an interrupted save has left behind."""
    for path in (run / FOLDER).glob(".step-*.tmp"):
        shutil.rmtree(path)


def _read_whole(path: Path) -> Index:
    try:
        return read_index(path)
    except Damaged as error:
        raise UserError(
            f"{path} is not a complete checkpoint ({error}); remove it to resume from the one before; "
            "with several machines, it must be in a folder that they share"
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        read_index(path)
    except Damaged:
        return False
    return True


def _tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name; DTensors where the model is sharded."""
    tensors = {_MODEL + name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in _trained(parameters, optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = value
    return tensors


def _trained(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in trained}


def _like(stored: Tensor, parameter: nn.Parameter) -> Tensor:
    """An empty tensor for a stored optimizer state, sharded like its parameter; counters are not sharded."""
    if stored.shape == parameter.shape:
        return torch.zeros_like(parameter.detach(), dtype=stored.dtype)
    return torch.zeros(stored.shape, dtype=stored.dtype, device=parameter.device)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def step_of(path: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(path.name.removeprefix("step-"))
