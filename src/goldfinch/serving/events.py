"""From the engine's thread to the event loop, and from there to the client."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request

from goldfinch.serving.engine import Engine
from goldfinch.serving.errors import ApiError
from goldfinch.serving.tasks import Event, Task

_LOGGER = logging.getLogger("goldfinch")

STREAM_RESPONSE: dict[str, Any] = {"content": {"text/event-stream": {"schema": {}}}}
"""For the OpenAPI document: what a route answers that also streams."""
SECONDS_BETWEEN_CHECKS = 0.1
"""Between looks at whether a client that gets no stream still waits."""


class Events:
    """The events of some tasks, for the event loop that this is made in."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def put(self, event: Event) -> None:
        """Add an event; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def start(self, engine: Engine, tasks: Sequence[Task]) -> AsyncIterator[Event]:
        """Let the engine do tasks whose `on_event` is `put`; they are cancelled when the iteration is left.

        The iteration has no end of its own. It raises what a task failed with.

        Raises:
            QueueFullError, StoppingError: the engine takes nothing now.
        """
        try:
            for task in tasks:
                engine.submit(task)
        except Exception:
            for task in tasks:
                task.cancel()
            raise
        return self._iterate(tasks)

    async def _iterate(self, tasks: Sequence[Task]) -> AsyncIterator[Event]:
        try:
            while True:
                event = await self._queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            for task in tasks:
                task.cancel()


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(request: Request, tasks: Sequence[Task]) -> AsyncIterator[None]:
    """Cancel tasks if their client goes away; nothing else tells a handler that does not stream."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
        for task in tasks:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def server_sent(bodies: AsyncIterator[dict[str, Any]], *, ends: bool = True) -> AsyncIterator[str]:
    """JSON objects as server-sent events, named by their type if they have one; an error is the last of them.

    Args:
        bodies: the objects.
        ends: whether [DONE] follows the last.
    """
    try:
        async for body in bodies:
            yield event_line(body)
    except Exception as error:
        shown = ApiError.of(error)
        if shown.status == 500:
            _LOGGER.exception("a stream has failed")
        yield event_line(shown.body)
        return
    if ends:
        yield "data: [DONE]\n\n"


def event_line(body: dict[str, Any]) -> str:
    """A JSON object as one server-sent event."""
    name = f"event: {body['type']}\n" if "type" in body else ""
    return f"{name}data: {json.dumps(body, ensure_ascii=False)}\n\n"
