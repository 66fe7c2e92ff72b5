"""`/v1/responses`, for text: OpenAI's newer form of a chat completion."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from goldfinch.serving.answer_format import usage
from goldfinch.serving.answers import chat_task
from goldfinch.serving.events import STREAM_RESPONSE, Events, cancelled_on_disconnect, server_sent
from goldfinch.serving.schemas import ResponsesRequest
from goldfinch.serving.server import Owner, Server
from goldfinch.serving.tasks import Answer, Event, Piece

Json = dict[str, Any]


def add_response_routes(app: FastAPI, server: Server) -> None:
    """Let an application answer in this form, too."""

    @app.post("/v1/responses", response_model=None, responses={200: STREAM_RESPONSE})
    async def responses(body: ResponsesRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        events = Events()
        task = await chat_task(server, owner, body.to_chat(), events)
        arriving = events.start(server.engine, [task])
        response = _Response(body, server.model_name, strips_space=not server.engine.lm.chat_template.is_plain)
        if body.stream:
            return StreamingResponse(server_sent(response.events(arriving), ends=False), media_type="text/event-stream")
        async with cancelled_on_disconnect(request, [task]):
            *_, last = [event async for event in response.events(arriving)]
        return JSONResponse(last["response"])


class _Response:
    """One response, as it grows."""

    def __init__(self, body: ResponsesRequest, model: str, strips_space: bool) -> None:
        self._strips_space = strips_space
        self._num_events, self._has_text = 0, False
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._base: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "temperature": body.temperature,
            "top_p": body.top_p,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "none",
            "tools": [],
            "parallel_tool_calls": False,
            "error": None,
            "incomplete_details": None,
        }

    async def events(self, arriving: AsyncIterator[Event]) -> AsyncIterator[Json]:
        """The stream's events; the last has the whole response."""
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=self._response("in_progress", []))
        yield self._event("response.in_progress", response=self._response("in_progress", []))
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=_part(""))
        async for event in arriving:
            if isinstance(event, Answer):
                answer = event
                break
            if isinstance(event, Piece) and (text := self._shown(event.text)):
                yield self._event("response.output_text.delta", **place, delta=text, logprobs=[])
        self._has_text = False
        text = self._shown(answer.generation.text)
        is_cut = answer.generation.finish_reason == "length"
        item = self._item("incomplete" if is_cut else "completed", [_part(text)])
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=item)
        end = "incomplete" if is_cut else "completed"
        response = self._response(end, [item]) | {"usage": _usage(answer)}
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event(f"response.{end}", response=response)

    def _shown(self, text: str) -> str:
        """A piece of text, the first one without the space that belongs to the chat template."""
        is_first, self._has_text = not self._has_text, True
        return text.removeprefix(" ") if is_first and self._strips_space else text

    def _event(self, kind: str, **content: Any) -> Json:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **content}

    def _response(self, status: str, output: list[Json]) -> Json:
        return self._base | {"status": status, "output": output}

    def _item(self, status: str, content: list[Json]) -> Json:
        return {
            "id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content
        }  # fmt: skip


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> Json:
    counts = usage([answer])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"] | {"cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
