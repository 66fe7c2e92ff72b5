"""Errors in OpenAI's form, whatever went wrong."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from goldfinch.errors import UserError
from goldfinch.inference.sampler import NanLogitsError
from goldfinch.serving.context_store import ConflictError, NoRoomError, NotFoundError
from goldfinch.serving.engine import QueueFullError, StoppingError, TooLargeError
from goldfinch.serving.tasks import RequestCancelledError

RETRY_AFTER = 1
"""Seconds until a refused request should be tried again."""

# What goes wrong in the engine and the library: HTTP status, OpenAI's type and code, and what the client is told, if
# that is not the message itself. The first that fits counts.
_KNOWN: list[tuple[type[Exception], int, str, str | None, str]] = [
    (QueueFullError, 429, "rate_limit_error", None, "too many requests wait: try again in a moment"),
    (StoppingError, 503, "server_error", None, "the server is about to end: try again in a moment"),
    (RequestCancelledError, 499, "invalid_request_error", None, "the client has closed the connection"),
    (TooLargeError, 400, "invalid_request_error", "context_length_exceeded", ""),
    (NotFoundError, 404, "invalid_request_error", None, ""),
    (ConflictError, 409, "invalid_request_error", None, ""),
    (NoRoomError, 413, "invalid_request_error", None, ""),
    (NanLogitsError, 500, "server_error", None, ""),
    (UserError, 400, "invalid_request_error", None, ""),
]


class ApiError(Exception):
    """An error as the client sees it.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        kind: OpenAI's `type`.
        param: the field of the request that is wrong.
        code: OpenAI's `code`, where it has one.
        headers: of the answer; 429 and 503 have Retry-After anyway.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._headers = ({"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else {}) | dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What went wrong in the engine or the library."""
        if isinstance(error, ApiError):
            return error
        for kind, status, openais_type, code, message in _KNOWN:
            if isinstance(error, kind):
                return cls(status, message or str(error), openais_type, code=code)
        return cls(500, "the server has failed, and its log says how: this is a bug", "server_error")

    def response(self) -> JSONResponse:
        """The answer to the request."""
        return JSONResponse(self.body, self.status, self._headers)


class ErrorDescription(BaseModel):
    """What is wrong, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer whose status is 400 or more."""

    error: ErrorDescription


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is wrong, not allowed, or one too many (429)"},
    "5XX": {"model": ErrorResponse, "description": "The server has failed, is about to end (503), or took too long"},
}
"""For the OpenAPI document: what any route may answer."""


def answer_errors(app: FastAPI) -> None:
    """Let every error that an application raises have OpenAI's form."""

    async def of_ours(_: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).response()

    kinds: list[type[Exception]] = [ApiError, *(known[0] for known in _KNOWN), Exception]
    for kind in kinds:
        app.exception_handler(kind)(of_ours)

    @app.exception_handler(HTTPException)  # no such route, or another method
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            # Starlette names those of the first route with this path alone.
            routes = [route for route in app.routes if isinstance(route, APIRoute)]
            here = [route for route in routes if route.path_regex.match(request.url.path)]
            error.headers = {"Allow": ", ".join(sorted({method for route in here for method in route.methods or ()}))}
        return ApiError(error.status_code, error.detail, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # else the place is a number of characters
        param = ".".join(str(part) for part in first["loc"] if part != "body") if is_json else ""
        return ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param or None).response()
