"""What stands between the network and the routes: limits of what may come in, and of how long it may take.

All of it is plain ASGI, which streams pass through unchanged.
"""

import asyncio
import dataclasses
import ipaddress
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from goldfinch.serving.access import ApiKeys, KeyCheck
from goldfinch.serving.errors import ApiError
from goldfinch.serving.events import event_line
from goldfinch.serving.metrics import Metrics, RequestMetrics

MAX_BODY_BYTES = 64 << 20
SECONDS_TO_SEND_BODY = 300.0
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a server takes from whom."""

    keys: ApiKeys | None = None
    """Who may use it; None for everyone who can reach it."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Of a request."""
    seconds_to_send_body: float = SECONDS_TO_SEND_BODY
    """Until the body of a request must be there."""
    timeout: float | None = None
    """Seconds for a request, from its beginning to the end of its answer, but for files that are downloaded."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may use it, such as https://example.com; "*" for all."""
    only_local_names: bool = False
    """Whether it must be called by a name of this machine (localhost, 127.0.0.1) by those without a key. A page from
    elsewhere cannot do that, even if its own name leads here."""


def add_middleware(app: FastAPI, limits: HttpLimits, num_tokens: Callable[[str], int], metrics: Metrics) -> None:
    """Put all of it before an application's routes.

    Args:
        app: the application.
        limits: what it takes from whom.
        num_tokens: name of an owner -> tokens that the model has read or generated for it.
        metrics: where requests are counted.
    """
    # What is added last comes first.
    if limits.timeout is not None:
        app.add_middleware(RequestTimeout, seconds=limits.timeout)
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes, seconds=limits.seconds_to_send_body)
    if limits.keys is not None:
        app.add_middleware(KeyCheck, keys=limits.keys, num_tokens=num_tokens)
    else:
        app.add_middleware(SameSite, cors_origins=limits.cors_origins, only_local_names=limits.only_local_names)
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=limits.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Content-Disposition"],
        )
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestMetrics, metrics=metrics)


class BodyLimit:
    """Refuses bodies that are too large (413) or too slow (408), while they come in.

    Args:
        app: what it stands before.
        max_bytes: of a body.
        seconds: from the head of a request to the end of its body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self.app = app
        self._max_bytes, self._seconds = max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass requests on with a body that is cut off where it becomes too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            error = ApiError(413, self._too_large, headers={"Connection": "close"})
            await error.response()(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._seconds
        num_received, is_complete = 0, False

        async def receive_limited() -> Message:
            nonlocal num_received, is_complete
            if is_complete:  # what comes now is the client's going away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                # Of a kind that routes pass on: they take any other for a body that cannot be parsed.
                raise HTTPException(
                    408, f"the body of the request did not come within {self._seconds:g} s", {"Connection": "close"}
                ) from None
            num_received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_received > self._max_bytes:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        await self.app(scope, receive_limited, send)

    @property
    def _too_large(self) -> str:
        return (
            f"the body of the request has more than {self._max_bytes:,} bytes: send the text in parts "
            "(/v1/contexts/ID/append), or start the server with a larger --max-body"
        )


class RequestTimeout:
    """Ends requests that take too long: 504, or an error at the end of a stream. Their work is cancelled.

    Args:
        app: what it stands before.
        seconds: from the head of a request to the end of its answer; to its beginning if it is no stream of events.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass requests on for as long as they may take."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_begun = is_complete = False

        async def send_watched(message: Message) -> None:
            nonlocal is_begun, is_complete
            if message["type"] == "http.response.start" and not is_event_stream(message):
                timeout.reschedule(None)
            await send(message)
            is_begun = True
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            async with asyncio.timeout(self._seconds) as timeout:
                await self.app(scope, receive, send_watched)
        except TimeoutError:
            if not timeout.expired():
                raise
            error = ApiError(
                504,
                f"the request took more than {self._seconds:g} s: ask for fewer tokens, or start the server with more "
                "--timeout",
                "server_error",
                code="timeout",
            )
            if not is_begun:
                await error.response()(scope, receive, send)
            elif not is_complete:
                await send({"type": "http.response.body", "body": event_line(error.body).encode(), "more_body": False})


def is_event_stream(message: Message) -> bool:
    """Whether the answer that begins with a message is one of server-sent events."""
    return Headers(raw=message["headers"]).get("Content-Type", "").startswith("text/event-stream")


class SameSite:
    """Refuses what pages of other sites make a browser send (403), where nothing else tells who asks.

    A browser says in `Origin` which site a page is of, and in `Host` by which name the server is called.

    Args:
        app: what it stands before.
        cors_origins, only_local_names: see `HttpLimits`.
    """

    def __init__(self, app: ASGIApp, cors_origins: Sequence[str] = (), only_local_names: bool = False) -> None:
        self.app = app
        self._cors_origins, self._only_local_names = cors_origins, only_local_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what no other site has sent."""
        if scope["type"] == "http" and (problem := self._problem(Headers(scope=scope))):
            await ApiError(403, problem).response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if self._only_local_names and not is_local(_hostname(host)):
            return "the server is called by a name that is not of this machine: use localhost, or --api-keys"
        is_known = origin is None or "*" in self._cors_origins or origin in self._cors_origins
        if is_known or origin in (f"http://{host}", f"https://{host}"):
            return None
        return "pages of this site may not use the server: start it with --cors-origin to allow them"


def _hostname(host: str) -> str:
    """Of a Host header, without the port; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether a host name or address is always this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class SafeHeaders:
    """Tells browsers to take no answer for something else and to keep none, where a route says nothing of it.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and add to the heads of answers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)
