"""How the application is served: connections and their limits, and how the server ends."""

import asyncio
import signal
import socket
import threading
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from goldfinch.errors import UserError

MAX_CONNECTIONS = 512
"""Requests on more are refused (503). Each takes a file descriptor, of which a process often has 1,024."""
SECONDS_WITHOUT_REQUEST = 30.0
"""Half of the time that a connection may be there without one. Heads of requests have to come in it, too."""
SECONDS_TO_FINISH = 30
"""For running requests when the server is asked to stop."""
SECONDS_TO_CLOSE = 1
"""For connections, when all answers are finished and the server ends."""


class Stoppable(Protocol):
    """What does the work: an engine, or replicas."""

    @property
    def is_stopping(self) -> bool:
        """Whether it takes nothing new."""

    def stop(self, timeout: float) -> None:
        """Finish what was asked for, for at most `timeout` seconds."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: it cannot.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another --port") from error


def serve(app: FastAPI, worker: Stoppable, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Then nothing new is taken (503, also from `/health`, so that others send no more), and what was asked before has 30
    seconds. A second signal ends at once.
    """
    server = _DrainingServer(uvicorn_config(app), worker)
    # When it has ended uvicorn raises the signal again, for whoever handled it before; but nothing is left to do.
    before = {sig: signal.signal(sig, lambda *_: None) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How an application is served."""
    return uvicorn.Config(
        app,
        http=Http,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
        server_header=False,
        proxy_headers=False,  # clients are known by their keys, never by addresses that they can claim
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
        """Stop watching."""
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


class _DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, worker: Stoppable) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal finish; on the second end."""
        if self._worker.is_stopping or sig not in (signal.SIGINT, signal.SIGTERM):
            super().handle_exit(sig, frame)
            return

        def drain() -> None:
            self._worker.stop(SECONDS_TO_FINISH)
            super(_DrainingServer, self).handle_exit(sig, frame)

        threading.Thread(target=drain, name="drain", daemon=True).start()
