"""One replica: a model with its engine, in a process of Ray's, that answers what it is passed."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope

from goldfinch.serving.app import create_api
from goldfinch.serving.options import ServerOptions
from goldfinch.serving.replicas.messages import HttpRequest, ReplicaReport

_LOGGER = logging.getLogger("goldfinch")
MAX_MESSAGES = 64
"""Parts of an answer that wait until they are taken."""
SECONDS_TO_FINISH = 30.0
"""For running requests when a replica is stopped."""


class Replica:
    """A model with its engine.

    Args:
        options: how the model is served.
        num_together: replicas that share the memory of this machine.

    Raises:
        UserError: as `ServerOptions.open`.
    """

    def __init__(self, options: ServerOptions, num_together: int) -> None:
        server = options.open(num_together)
        self._engine, self._app = server.engine, create_api(server)
        self._name = f"{os.uname().nodename}-{os.getpid()}"

    async def answer(self, request: HttpRequest) -> AsyncIterator[Message | ReplicaReport]:
        """The messages of ASGI that answer a request, and a report before the last of them.

        The first comes when there is some of the answer's body: until then another replica could answer instead. If
        the iteration is left before the end, the request ends as if its client had gone away.
        """
        scope, head = request.scope(), list[Message]()
        async for message in run_app(self._app, scope, request.body):
            if message["type"] == "http.response.start":
                head.append(message)
                continue
            while head:
                yield head.pop()
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                route = getattr(scope.get("route"), "path", "other")
                yield ReplicaReport(name=self._name, status=self._engine.status(), route=route)
            yield message

    def check_health(self) -> None:
        """For Ray, which replaces a replica whose engine has failed."""
        if self._engine.is_stopping:
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        """Finish what was asked for."""
        if engine := getattr(self, "_engine", None):
            engine.stop(SECONDS_TO_FINISH)


async def run_app(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """What an application answers; it is told that its client has gone if the iteration is left."""
    messages = asyncio.Queue[Message | None](MAX_MESSAGES)
    is_gone = asyncio.Event()
    arriving = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if arriving:
            return arriving.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        except Exception:  # of which the application has told the client
            _LOGGER.exception("a request has failed")
        finally:
            await messages.put(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        is_gone.set()
        while not task.done():  # it ends as it does for any client that has gone; nobody takes what it still sends
            while not messages.empty():
                messages.get_nowait()
            await asyncio.wait([task], timeout=0.05)
