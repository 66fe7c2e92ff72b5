"""The processes of a run: which one this is, and the little that they tell each other.

`torchrun` starts them and says through the environment who is who. A run of one process has no process group, and all
of this costs it nothing.
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

from goldfinch.errors import UserError

T = TypeVar("T")

_LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|remote process exited", re.I)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the run. Every method but `device` must be called by all of them."""

    rank: int = 0
    """This one, counted over all machines."""
    world_size: int = 1
    """All of them."""
    local_rank: int = 0
    """This one, counted on its machine: which GPU it uses."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes what is written once."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of `TrainConfig.device`: of several GPUs, this process's own.

        Raises:
            UserError: no such device, or more processes than GPUs.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"unknown --device {name}: cpu, cuda, or cuda:1 for the second GPU") from error
        if device.type != "cuda" or self.world_size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local_rank + 1} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}: lower --nproc-per-node, or train with --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def mesh(self, device: torch.device, num_replicas: int) -> DeviceMesh | None:
        """How the model is spread: over all processes, or over each of `num_replicas` equal groups of them (HSDP).

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
        """Each value added up over the processes, in one all-reduce; the same numbers everywhere."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def all_reduce_min(self, value: float) -> float:
        """The lowest value of any process."""
        return self._reduced((value,), dist.ReduceOp.MIN)[0]

    def _reduced(self, values: tuple[float, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return list(values)
        # On the CPU, through gloo: a GPU need not be waited for.
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """A block that fails everywhere if it fails anywhere, told by one process. It must not communicate itself.

        Raises:
            UserError: what the block raises, here or elsewhere; likewise OSError.
        """
        failure: UserError | OSError | None = None
        try:
            yield
        except (UserError, OSError) as error:
            failure = error
        teller = self.all_reduce_min(self.rank if failure else self.world_size)
        if failure is None and teller == self.world_size:
            return
        if failure is None or teller < self.rank:
            failure = UserError.reported_elsewhere()
        raise failure

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, which alone runs it; a failure there is one everywhere."""
        results: list[T | None] = [None]
        with self.fail_together():
            if self.is_main:
                results = [work()]
        if self.world_size > 1:
            dist.broadcast_object_list(results)
        return cast(T, results[0])

    def error_on_main(self, error: UserError) -> UserError:
        """For an error that all processes raise together: the main one tells it."""
        return error if self.is_main else UserError.reported_elsewhere(error.exit_code)


SINGLE_PROCESS = Processes()
"""A run of one process."""


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` has started; without it, be the only one.

    Raises:
        UserError: when another process of the run is lost.
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
    # gloo beside NCCL: numbers of the host, and checkpoints while a GPU goes on.
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
            f"process {processes.rank} stops because another one of the run has ended: look at what that one says"
        ) from error
    # After an error it is left alone: the others may be gone, and taking leave would wait for them.
    dist.destroy_process_group()
