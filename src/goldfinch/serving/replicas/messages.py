"""What the proxy and its replicas send each other, with the messages of ASGI."""

import dataclasses

from starlette.types import Scope

from goldfinch.serving.statistics import EngineStatus


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request that has been let in, and has come in whole."""

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    owner: str

    def scope(self) -> Scope:
        """The same for an ASGI application."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "root_path": "",
            "headers": list(self.headers),
            "state": {"owner": self.owner},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """What a replica says of itself with each answer."""

    name: str
    status: EngineStatus
    route: str
    """The route that has answered."""
