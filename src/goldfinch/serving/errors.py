"""Errors in OpenAI's form, whatever went wrong."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from goldfinch.errors import UserError
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
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What went wrong in the engine or the library."""
        if isinstance(error, ApiError):
            return error
        for kind, status, openais_type, code, message in _KNOWN:
            if isinstance(error, kind):
                return cls(status, message or str(error), openais_type, code=code)
        return cls(500, str(error) or type(error).__name__, "server_error")

    def response(self) -> JSONResponse:
        """The answer to the request."""
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else None
        return JSONResponse(self.body, self.status, headers)


def answer_errors(app: FastAPI) -> None:
    """Let every error that an application raises have OpenAI's form."""

    async def of_ours(_: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).response()

    kinds: list[type[Exception]] = [ApiError, *(known[0] for known in _KNOWN)]
    for kind in kinds:
        app.exception_handler(kind)(of_ours)

    @app.exception_handler(HTTPException)  # no such route, or another method
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, error.detail).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # else the place is a number of characters
        param = ".".join(str(part) for part in first["loc"] if part != "body") if is_json else ""
        return ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param or None).response()
