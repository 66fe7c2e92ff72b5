"""What clients are connected to: keys, limits, the page, and replicas that do the rest."""

import asyncio
from types import SimpleNamespace

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.errors import ApiError, answer_errors
from goldfinch.serving.events import event_line
from goldfinch.serving.metrics import Metrics, add_metrics_route
from goldfinch.serving.middleware import HttpLimits, add_middleware, is_event_stream
from goldfinch.serving.page import mount_page
from goldfinch.serving.replicas.group import ReplicaGroup
from goldfinch.serving.replicas.messages import HttpRequest, ReplicaReport


def create_proxy(replicas: ReplicaGroup, contexts: ContextStore, limits: HttpLimits) -> FastAPI:
    """The application before replicas, to which it looks like the one of a single server.

    Args:
        replicas: all of them.
        contexts: the folder that they share, for its metrics.
        limits: what is taken from whom.
    """
    app = FastAPI(openapi_url=None)  # the replicas' own is passed on
    answer_errors(app)
    metrics = Metrics(lambda: {name: report.status for name, report in list(replicas.reports.items())}, contexts)
    add_middleware(app, limits, replicas.num_tokens, metrics)
    add_metrics_route(app, metrics)
    mount_page(app)

    @app.get("/health")
    def health() -> JSONResponse:  # not a coroutine: Ray is asked
        num_healthy = replicas.num_healthy()
        status = "draining" if replicas.is_stopping else "ok" if num_healthy else "no replica"
        body = {"status": status, "running": replicas.num_running, "replicas": num_healthy}
        return JSONResponse(body, 200 if status == "ok" else 503)

    app.mount("/", Forward(replicas))
    return app


class Forward:
    """ASGI application: passes requests to replicas, and their answers back.

    Args:
        replicas: all of them.
    """

    def __init__(self, replicas: ReplicaGroup) -> None:
        self._replicas = replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what a replica does for it ends when its client goes away."""
        if scope["type"] != "http":
            return
        try:
            request = await _whole_request(scope, receive)
        except ClientDisconnect:
            return
        answering = asyncio.create_task(self._answer(request, scope, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, request: HttpRequest, scope: Scope, send: Send) -> None:
        is_stream = False
        try:
            async for message in self._replicas.answer(request):
                if isinstance(message, ReplicaReport):
                    scope["route"] = SimpleNamespace(path=message.route)  # for the metrics, as Starlette says it
                    continue
                await send(message)
                if message["type"] == "http.response.start":
                    is_stream = is_event_stream(message)
        except ApiError as error:
            if not is_stream:
                raise
            await send({"type": "http.response.body", "body": event_line(error.body).encode(), "more_body": False})


async def _whole_request(scope: Scope, receive: Receive) -> HttpRequest:
    """With all of its body.

    Raises:
        ClientDisconnect: the client went away before.
    """
    return HttpRequest(
        method=scope["method"],
        path=scope["path"],
        raw_path=scope.get("raw_path") or scope["path"].encode(),
        query_string=scope["query_string"],
        headers=tuple(scope["headers"]),
        body=await Request(scope, receive).body(),
        owner=scope.get("state", {}).get("owner", ""),
    )


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
