"""Connections to clients: how many there may be, and how long one may be there without a request."""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
"""Requests on more are refused (503). Each takes a file descriptor, of which a process often has 1,024."""
SECONDS_WITHOUT_REQUEST = 30.0
"""Half of the time that a connection may be there without one. Heads of requests have to come in it, too."""
SECONDS_TO_CLOSE = 1
"""For connections, when all answers are finished and the server ends."""


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How an application is served."""
    return uvicorn.Config(
        app,
        http=Http,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
        server_header=False,
        proxy_headers=False,  # who asks is told by keys, never by addresses that a client can claim
    )


class Http(H11Protocol):
    """HTTP/1.1 that sends at once, on connections that are closed if no request comes.

    Uvicorn itself closes those that send nothing, not those that send the head of a request a byte at a time.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to watch."""
        super().connection_made(transport)
        # As asyncio does, but not for a listener from `socket.create_server`. Without it the body of an answer, and
        # every token of a stream, waits until the client has confirmed what came before: 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._last_cycle: object = None
        self._watch = self.loop.call_later(SECONDS_WITHOUT_REQUEST, self._close_if_unused)

    def connection_lost(self, exc: Exception | None) -> None:
        """End to watch."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _close_if_unused(self) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_waiting and self.cycle is self._last_cycle:
            self.transport.close()
            return
        if is_waiting:
            self._last_cycle = self.cycle
        self._watch = self.loop.call_later(SECONDS_WITHOUT_REQUEST, self._close_if_unused)
