"""The processes of a run: ranks, and the little that they communicate.

`torchrun` starts them and sets their ranks in the environment. A run of one process has no process group, and nothing
here costs it anything.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from goldfinch.devices import resolve_device
from goldfinch.errors import UserError

T = TypeVar("T")

_LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|remote process exited", re.I)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the run. Every method except `device` must be called by all of them."""

    rank: int = 0
    """Rank of this process, over all machines."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Rank on this machine: which GPU it uses."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device that `TrainConfig.device` names; with several GPUs, this process's own.

        Raises:
            UserError: no such device, or more processes than GPUs.
        """
        device = resolve_device(name)
        if device.type != "cuda" or self.world_size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local_rank + 1} on this machine has no GPU: there are {torch.cuda.device_count()}; "
                "lower --nproc-per-node, or train with --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def mesh(self, device: torch.device, num_replicas: int) -> DeviceMesh | None:
        """How the model is sharded: over all processes, or over each of `num_replicas` equal groups of them (HSDP).

        Returns:
            The mesh ("replicate", "shard"), or ("shard",) for one replica; None in a run of one process.
        """
        if self.world_size == 1:
            return None
        if num_replicas == 1:
            return init_device_mesh(device.type, (self.world_size,), mesh_dim_names=("shard",))
        shape = (num_replicas, self.world_size // num_replicas)
        return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Sum each value over the processes, in one all-reduce."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def all_reduce_min(self, value: float) -> float:
        """The minimum of a value over the processes."""
        return self._reduced((value,), dist.ReduceOp.MIN)[0]

    def _reduced(self, values: tuple[float, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return list(values)
        # On the CPU, through gloo, without waiting for the GPU.
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """A block that fails in all processes if it fails in one, which reports it. It must not communicate itself.

        Raises:
            UserError: the block raised it, here or in another process; likewise OSError.
        """
        failure: UserError | OSError | None = None
        try:
            yield
        except (UserError, OSError) as error:
            failure = error
        reporter = self.all_reduce_min(self.rank if failure else self.world_size)
        if failure is None and reporter == self.world_size:
            return
        if failure is None or reporter < self.rank:
            failure = UserError.reported_elsewhere()
        raise failure

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process only; its result is returned, and its failure raised, in all processes."""
        results: list[T | None] = [None]
        with self.fail_together():
            if self.is_main:
                results = [work()]
        if self.world_size > 1:
            dist.broadcast_object_list(results)
        return cast(T, results[0])

    def error_on_main(self, error: UserError) -> UserError:
        """An error that all processes raise together, to be reported by the main one."""
        return error if self.is_main else UserError.reported_elsewhere(error.exit_code)


SINGLE_PROCESS = Processes()
"""A run of one process."""


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` has started; without torchrun there is only this one.

    Raises:
        UserError: another process of the run was lost.
    """
    environment = os.environ
    processes = Processes(
        rank=int(environment.get("RANK", 0)),
        world_size=int(environment.get("WORLD_SIZE", 1)),
        local_rank=int(environment.get("LOCAL_RANK", 0)),
    )
    if processes.world_size == 1:
        yield processes
        return
    # gloo besides NCCL: for numbers on the host, and for checkpoints while the GPU continues.
    gpus = torch.cuda.device_count()
    own_gpu = int(environment.get("LOCAL_WORLD_SIZE", 1)) <= gpus
    device = torch.device("cuda", processes.local_rank) if own_gpu else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", device_id=device)
    try:
        yield processes
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise UserError(
            f"process {processes.rank} stops because another process of the run has ended: see its error"
        ) from error
    # Not after an error: the others may be gone, and this would wait for them.
    dist.destroy_process_group()
