"""Ray, for work on several processes or machines: on this machine alone, or a cluster that is there."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from goldfinch.errors import UserError

LOCAL = "local"
"""Address for a Ray of one's own on this machine."""
OBJECT_STORE_BYTES = 256 << 20
"""Memory for what processes of a local Ray pass to each other; more goes to the disk."""
SECONDS_TO_CONNECT = 5.0


@contextlib.contextmanager
def connected_to_ray(address: str, min_cpus: int = 1) -> Iterator[None]:
    """Be connected to Ray until the end of the block; if this process is already, it stays as it is.

    Args:
        address: "local" starts one for this process on this machine, which ends with it; "auto" is the cluster that
            this machine belongs to; else HOST:PORT of a cluster, or ray://HOST:PORT.
        min_cpus: that a local one says it has, whatever the machine has.

    Raises:
        UserError: ray is not installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here needs a network
    try:
        import ray
    except ImportError as error:
        raise UserError(f"this needs {error.name}: pip install 'goldfinch[replicas]'") from error
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    try:
        if address == LOCAL:
            ray.init(
                LOCAL,
                num_cpus=max(os.cpu_count() or 1, min_cpus),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot connect to Ray at {address} ({error}): start it with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        UserError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # one that Ray finds itself
        return
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"nothing answers at {address} ({error}): `ray start --head` prints the address") from error
