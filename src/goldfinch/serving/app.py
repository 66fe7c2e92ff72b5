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

from goldfinch import __version__
from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.token_ids import require_tokenizer
from goldfinch.serving.engine import Engine, Event, Job, PromptCounts, QueueFullError, check_prompt
from goldfinch.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest

RETRY_AFTER = 1
"""Seconds until a refused request should be tried again."""


class ApiError(Exception):
    """An error in OpenAI's form."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def response(self) -> JSONResponse:
        """`{"error": {...}}`."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": None}
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 429 else None
        return JSONResponse({"error": error}, self.status, headers)


def create_app(engine: Engine, model_name: str) -> FastAPI:
    """The application around an engine that runs."""
    app = FastAPI(title="GoldFinch", version=__version__)
    created = int(time.time())

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return ApiError(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return ApiError(400, f"{place}: {first['msg']}" if place else first["msg"], param=place or None).response()

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
        ids = engine.lm.encode(body.prompt).tolist()
        form = _Form("cmpl", "text_completion", "text_completion", model_name)
        return await _answer(engine, body, body.sampling(), ids, form, request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        template = engine.lm.chat_template
        text = template.render([message.model_dump() for message in body.messages])
        sampling = body.sampling(more_stops=template.stop(engine.lm.tokenizer))
        ids = require_tokenizer(engine.lm.tokenizer).encode(text, special_tokens=True)
        form = _Form("chatcmpl", "chat.completion", "chat.completion.chunk", model_name)
        return await _answer(engine, body, sampling, ids, form, request)

    return app


class _Form:
    """How answers look."""

    def __init__(self, prefix: str, whole: str, chunk: str, model: str) -> None:
        self._base = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._whole, self._chunk = whole, chunk
        self.is_chat = prefix == "chatcmpl"

    def whole(self, text: str, reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None} | content
        return self._base | {"object": self._whole, "choices": [choice], "usage": usage}

    def chunk(self, text: str | None, reason: str | None = None, first: bool = False) -> dict[str, Any]:
        if self.is_chat:
            delta = ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": text or ""}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None} | content
        return self._base | {"object": self._chunk, "choices": [choice]}

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._base | {"object": self._chunk, "choices": [], "usage": usage}


def _usage(counts: PromptCounts, written: int) -> dict[str, Any]:
    details = {"cached_tokens": counts.cached, "replayed_tokens": counts.replayed, "computed_tokens": counts.computed}
    return {
        "prompt_tokens": counts.total,
        "completion_tokens": written,
        "total_tokens": counts.total + written,
        "prompt_tokens_details": details,
    }


async def _answer(
    engine: Engine, body: GenerationRequest, sampling: Sampling, ids: list[int], form: _Form, request: Request
) -> JSONResponse | StreamingResponse:
    check_prompt(engine.lm, ids)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and nobody waits any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = Job(ids, sampling, body.tokens_wanted, None, tell)
    try:
        engine.submit(job)
    except QueueFullError:
        raise ApiError(429, "too many requests wait: try again in a moment", "rate_limit_error") from None
    if body.stream:
        return StreamingResponse(_stream(job, events, body, form), media_type="text/event-stream")
    watcher = asyncio.create_task(_cancel_on_disconnect(request, job))
    try:
        while (event := await events.get()).kind != "done":
            _raise_failure(event)
    finally:
        watcher.cancel()
        job.cancel()
    assert event.generation is not None
    assert event.counts is not None
    usage = _usage(event.counts, len(event.generation.token_ids))
    return JSONResponse(form.whole(event.generation.text, event.generation.finish_reason, usage))


async def _stream(job: Job, events: asyncio.Queue[Event], body: GenerationRequest, form: _Form) -> AsyncIterator[str]:
    try:
        if form.is_chat:
            yield _line(form.chunk("", first=True))
        while (event := await events.get()).kind != "done":
            if event.kind == "failed":
                yield _line(
                    {"error": {"message": str(event.error), "type": "server_error", "param": None, "code": None}}
                )
                return
            if event.kind == "piece":
                yield _line(form.chunk(event.piece))
        assert event.generation is not None
        assert event.counts is not None
        yield _line(form.chunk(None, event.generation.finish_reason))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _line(form.usage(_usage(event.counts, len(event.generation.token_ids))))
        yield "data: [DONE]\n\n"
    finally:
        job.cancel()


async def _cancel_on_disconnect(request: Request, job: Job) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)
    job.cancel()


def _raise_failure(event: Event) -> None:
    if event.kind == "failed" and event.error is not None:
        if isinstance(event.error, UserError):
            raise event.error
        raise ApiError(500, str(event.error), "server_error")


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
