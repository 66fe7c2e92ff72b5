"""All replicas together: requests are given to one of them, and to another if it dies."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import ReplicaState
from starlette.types import Message

from goldfinch.serving.engine import QueueFullError
from goldfinch.serving.errors import ApiError
from goldfinch.serving.replicas.affinity import affinity_key
from goldfinch.serving.replicas.messages import HttpRequest, ReplicaReport

_LOGGER = logging.getLogger("goldfinch")
MAX_ATTEMPTS = 3
"""Replicas that a request is given to, one after the other, as they die."""
# What may be done twice. Of the rest nobody knows how far a replica has come that has died.
_REPEATABLE = re.compile(r"/v1/(completions|chat/completions|responses)|/tokenize|/detokenize")
_LARGE_BODY = 1 << 16
"""Bytes of JSON that the event loop should not wait for."""


class ReplicaGroup:
    """Replicas as the proxy sees them.

    Args:
        handle: Ray's, of their deployment.
        app_name: the name of their application in Ray.
    """

    def __init__(self, handle: DeploymentHandle[object], app_name: str) -> None:
        self._handle, self._app_name = handle.options(method_name="answer", stream=True), app_name
        self.reports: dict[str, ReplicaReport] = {}
        """By name, with those that have died: what they have counted still counts."""
        self._num_running = 0
        self._is_stopping = False
        self._are_finished = threading.Event()

    @property
    def num_running(self) -> int:
        """Requests that have not been answered whole."""
        return self._num_running

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    def num_tokens(self, owner: str) -> int:
        """Tokens that the model has read or generated for an owner."""
        return sum(report.status.statistics.tokens_by_owner[owner] for report in list(self.reports.values()))

    def num_healthy(self) -> int:
        """Replicas that answer."""
        app = serve.status().applications.get(self._app_name)
        states = [deployment.replica_states for deployment in app.deployments.values()] if app is not None else []
        return sum(state.get(ReplicaState.RUNNING, 0) for state in states)

    def stop(self, timeout: float) -> None:
        """Take nothing new, and let what runs finish, for at most `timeout` seconds; from another thread."""
        self._is_stopping = True
        if self._num_running:
            self._are_finished.wait(timeout)

    async def answer(self, request: HttpRequest) -> AsyncIterator[Message | ReplicaReport]:
        """What `Replica.answer` gives; from another replica if one dies before it has given anything.

        Raises:
            ApiError: too many requests wait, no replica is there, or one has died.
        """
        if self._is_stopping:
            raise ApiError(503, "the server is about to end: try again in a moment", "server_error")
        can_repeat = request.method == "GET" or _REPEATABLE.fullmatch(request.path) is not None
        self._num_running += 1
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                has_begun = False
                try:
                    async for message in self._ask(request):
                        has_begun = True
                        yield message
                    return
                except RayActorError as error:
                    if has_begun or not can_repeat or attempt == MAX_ATTEMPTS:
                        raise _replica_died(can_repeat) from error
                    _LOGGER.warning("a replica has died, and another one answers its requests")
        finally:
            self._num_running -= 1
            if self._is_stopping and not self._num_running:
                self._are_finished.set()

    async def _ask(self, request: HttpRequest) -> AsyncIterator[Message | ReplicaReport]:
        """The same from one replica.

        Raises:
            RayActorError: it has died.
        """
        is_large = len(request.body) > _LARGE_BODY
        key = await asyncio.to_thread(affinity_key, request) if is_large else affinity_key(request)
        arriving = cast(DeploymentResponseGenerator[Any], self._handle.options(session_id=key).remote(request))
        is_complete = False
        try:
            async for message in arriving:
                if isinstance(message, ReplicaReport):
                    self.reports[message.name] = message
                yield message
            is_complete = True
        except BackPressureError as error:
            raise ApiError.of(QueueFullError()) from error
        except DeploymentUnavailableError as error:
            raise ApiError(503, "no replica is there: try again in a moment", "server_error") from error
        finally:
            if not is_complete:
                arriving.cancel()


def _replica_died(can_repeat: bool) -> ApiError:
    look = "" if can_repeat else "; it may have done some of it, so look at the context first"
    return ApiError(503, f"the replica that worked on this has died: try again{look}", "server_error")
