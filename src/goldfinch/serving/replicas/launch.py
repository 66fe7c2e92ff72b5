"""Starting replicas on Ray, on this machine or a cluster."""

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Iterator
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from goldfinch.errors import UserError
from goldfinch.ray_cluster import LOCAL, connected_to_ray
from goldfinch.serving.options import ServerOptions
from goldfinch.serving.replicas.group import ReplicaGroup
from goldfinch.serving.replicas.replica import SECONDS_TO_FINISH, Replica

MAX_RUNNING = 32
"""Concurrent requests of a replica. Further ones are sent to the next replica, or wait if all are full."""
MAX_WAITING = 256
"""Requests that wait for any replica; more are refused."""
SECONDS_BETWEEN_HEALTH_CHECKS = 2.0
SECONDS_TO_ANSWER_HEALTH_CHECK = 30.0


@dataclasses.dataclass(frozen=True)
class Placement:
    """What of the machines each replica has."""

    cpus: int
    gpus: int
    num_together: int
    """Replicas on one machine, at most."""


def place(num_replicas: int, cpus: int | None, device: str) -> Placement:
    """Divide the machines that Ray has among replicas.

    Args:
        num_replicas: how many.
        cpus: processors for each; None for an equal share of all that there are.
        device: of the model; a GPU for each replica, if there are enough and it may be one.

    Raises:
        UserError: there are not so many processors or GPUs.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus_of = [int(machine.get("CPU", 0)) for machine in machines]
    each = max(1, min(sum(cpus_of) // num_replicas, max(cpus_of))) if cpus is None else cpus
    if sum(n // each for n in cpus_of) < num_replicas:
        raise UserError(
            f"there is no room for {num_replicas} replicas with {each} processors each on {len(machines)} machines "
            f"with {', '.join(map(str, cpus_of))}: give a smaller --replicas or --cpus-per-replica"
        )
    num_gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if device.startswith("cuda") and num_gpus < num_replicas:
        raise UserError(f"{num_replicas} replicas need a GPU each, and Ray has {num_gpus}: give a smaller --replicas")
    gpus = int(device != "cpu" and num_gpus >= num_replicas)
    return Placement(each, gpus, min(num_replicas, max(cpus_of) // each))


@contextlib.contextmanager
def started_replicas(
    address: str, options: ServerOptions, num_replicas: int, cpus: int | None
) -> Iterator[ReplicaGroup]:
    """Replicas on Ray, until the end of the block.

    Args:
        address: of Ray, as for `connected_to_ray`.
        options: how each serves the model, whose paths must be the same on all machines.
        num_replicas: how many.
        cpus: processors for each; None for an equal share.

    Raises:
        UserError: there is no room for them, or they cannot be started.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connected_to_ray(address, min_cpus=num_replicas):
        name = f"goldfinch-{uuid.uuid4().hex[:8]}"  # others may serve on the same cluster
        try:
            yield ReplicaGroup(_start(name, options, num_replicas, cpus), name)
        finally:
            if address != LOCAL:  # else all of Ray ends
                serve.delete(name)


def _start(name: str, options: ServerOptions, num_replicas: int, cpus: int | None) -> DeploymentHandle[object]:
    """Start replicas as an application of Ray Serve, and wait until they are there."""
    placement = place(num_replicas, cpus, options.device)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"location": "NoServer"}, logging_config=quiet)
    deployment = serve.deployment(
        name="model",
        num_replicas=num_replicas,
        max_ongoing_requests=MAX_RUNNING,
        max_queued_requests=MAX_WAITING,
        ray_actor_options={"num_cpus": placement.cpus, "num_gpus": placement.gpus},
        # The same conversation is answered by the same replica as long as it is there and not full.
        request_router_config=RequestRouterConfig(request_router_class=cast(Any, ConsistentHashRouter)),
        health_check_period_s=SECONDS_BETWEEN_HEALTH_CHECKS,
        health_check_timeout_s=SECONDS_TO_ANSWER_HEALTH_CHECK,
        graceful_shutdown_timeout_s=SECONDS_TO_FINISH,
        logging_config=quiet,
    )(Replica)
    try:
        return serve.run(deployment.bind(options, placement.num_together), name=name, route_prefix=None)
    except RuntimeError as error:  # which has the traceback of a replica
        raise UserError(f"the replicas cannot be started: {error}") from error
