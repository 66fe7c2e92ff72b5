"""The routes: OpenAI's completions and chat completions, streamed or whole."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from torch import Tensor

from goldfinch import __version__
from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.token_ids import token_ids
from goldfinch.serving.engine import Answer, Engine, Event, Job, PromptCounts, QueueFullError, RequestCancelledError
from goldfinch.serving.page import mount_page
from goldfinch.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest

RETRY_AFTER = 1
"""Seconds until a refused request should be tried again."""


class ApiError(Exception):
    """An error in OpenAI's form."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": None}}

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What went wrong in the engine."""
        return cls(400, str(error)) if isinstance(error, UserError) else cls(500, str(error), "server_error")

    def response(self) -> JSONResponse:
        """The answer to the request."""
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 429 else None
        return JSONResponse(self.body, self.status, headers)


def create_app(engine: Engine, model_name: str) -> FastAPI:
    """The application around an engine that runs."""
    app = FastAPI(title="GoldFinch", version=__version__)
    created = int(time.time())
    _answer_errors_in_openais_form(app)
    mount_page(app)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "running": engine.num_running, "waiting": engine.num_waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": model_name, "object": "model", "created": created, "owned_by": "goldfinch"}],
        }

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> JSONResponse | StreamingResponse:
        ids = engine.lm.encode(body.prompt)
        return await _answer(engine, body, body.sampling(), ids, _ResponseFormat(model_name, is_chat=False), request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        lm = engine.lm
        text = lm.chat_template.render([message.model_dump() for message in body.messages])
        ids = token_ids(text, lm.tokenizer, lm.config.vocab_size, special_tokens=True)
        sampling = body.sampling(more_stops=lm.chat_template.stop(lm.tokenizer))
        return await _answer(engine, body, sampling, ids, _ResponseFormat(model_name, is_chat=True), request)

    return app


def _answer_errors_in_openais_form(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return ApiError.of(error).response()

    @app.exception_handler(HTTPException)  # no such route, or another method
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, error.detail).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # else the place is a number of characters
        param = ".".join(str(part) for part in first["loc"] if part != "body") if is_json else ""
        return ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param or None).response()


class _ResponseFormat:
    """Answers of one request as `/v1/completions` or `/v1/chat/completions` gives them."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        prefix = "chatcmpl" if is_chat else "cmpl"
        self._base = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        text = answer.generation.text
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._response(kind, [_choice(content, answer.generation.finish_reason)]) | {"usage": _usage(answer)}

    def begin(self) -> dict[str, Any] | None:
        """The first chunk, if there is one before the text."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self._is_chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk of text."""
        return self._chunk({"delta": {"content": text}} if self._is_chat else {"text": text})

    def end(self, answer: Answer) -> dict[str, Any]:
        """The last chunk with a choice."""
        return self._chunk({"delta": {}} if self._is_chat else {"text": ""}, answer.generation.finish_reason)

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The chunk after it, if the client wants to know."""
        return self._response(self._chunk_kind, []) | {"usage": _usage(answer)}

    def _chunk(self, content: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return self._response(self._chunk_kind, [_choice(content, finish_reason)])

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _response(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._base | {"object": kind, "choices": choices}


def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "finish_reason": finish_reason, "logprobs": None} | content


def _usage(answer: Answer) -> dict[str, Any]:
    counts: PromptCounts = answer.prompt
    written = len(answer.generation.token_ids)
    details = {"cached_tokens": counts.cached, "replayed_tokens": counts.replayed, "computed_tokens": counts.computed}
    return {
        "prompt_tokens": counts.total,
        "completion_tokens": written,
        "total_tokens": counts.total + written,
        "prompt_tokens_details": details,
    }


async def _answer(
    engine: Engine,
    body: GenerationRequest,
    sampling: Sampling,
    ids: Tensor,
    response_format: _ResponseFormat,
    request: Request,
) -> JSONResponse | StreamingResponse:
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def on_event(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended: nobody waits
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = Job(ids.tolist(), sampling, body.max_tokens_or_default, on_event)
    try:
        engine.submit(job)
    except QueueFullError:
        raise ApiError(429, "too many requests wait: try again in a moment", "rate_limit_error") from None
    if body.stream:
        return StreamingResponse(_stream(job, events, body, response_format), media_type="text/event-stream")
    watcher = asyncio.create_task(_cancel_on_disconnect(request, job))
    try:
        while isinstance(event := await events.get(), str):
            pass  # the answer has the whole text
    finally:
        watcher.cancel()
        job.cancel()
    if isinstance(event, RequestCancelledError):
        raise ApiError(499, "the client has closed the connection")
    if isinstance(event, Exception):
        raise ApiError.of(event)
    return JSONResponse(response_format.whole(event))


async def _stream(
    job: Job, events: asyncio.Queue[Event], body: GenerationRequest, response_format: _ResponseFormat
) -> AsyncIterator[str]:
    try:
        if (begin := response_format.begin()) is not None:
            yield _line(begin)
        while isinstance(event := await events.get(), str):
            yield _line(response_format.piece(event))
        if isinstance(event, Exception):
            yield _line(ApiError.of(event).body)
            return
        yield _line(response_format.end(event))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _line(response_format.usage(event))
        yield "data: [DONE]\n\n"
    finally:
        job.cancel()


async def _cancel_on_disconnect(request: Request, job: Job) -> None:
    # Nothing tells a handler that does not stream.
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)
    job.cancel()


def _line(content: dict[str, Any]) -> str:
    """An event of a stream (server-sent events)."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
