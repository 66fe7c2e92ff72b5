"""The routes that generate: `/v1/completions` and `/v1/chat/completions`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from goldfinch.errors import UserError
from goldfinch.serving.answer_format import AnswerFormat, ChatFormat, CompletionFormat
from goldfinch.serving.events import STREAM_RESPONSE, Events, cancelled_on_disconnect, server_sent
from goldfinch.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest
from goldfinch.serving.server import Owner, Server
from goldfinch.serving.tasks import Answer, Event, GenerationTask, Piece


def add_answer_routes(app: FastAPI, server: Server) -> None:
    """Let an application answer."""

    @app.post("/v1/completions", response_model=None, responses={200: STREAM_RESPONSE})
    async def completions(body: CompletionRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        base = await base_file(server, owner, body.context)
        prompts = [await server.encode(prompt) for prompt in body.prompts]
        if not prompts:
            raise UserError("prompt: give a text, token ids, or a list of such")
        sampling, events = await asyncio.to_thread(body.sampling), Events()
        wants_prompt_logprobs = body.echo and body.logprobs is not None
        tasks = [
            GenerationTask(
                owner,
                events.put,
                ids,
                sampling,
                body.max_tokens_or_default,
                base=base,
                num_answers=body.n,
                first_index=row * body.n,
                num_logprobs=body.logprobs,
                with_prompt_logprobs=wants_prompt_logprobs,
            )
            for row, ids in enumerate(prompts)
        ]
        echo = None
        if body.echo:
            echo = [(server.tokenizer.decode(ids.tolist()), ids.tolist()) for ids in prompts for _ in range(body.n)]
        answer_format = CompletionFormat(server.model_name, server.tokenizer, echo)
        return await _respond(server, events, tasks, body, answer_format, request)

    @app.post("/v1/chat/completions", response_model=None, responses={200: STREAM_RESPONSE})
    async def chat(body: ChatRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        events = Events()
        task = await chat_task(server, owner, body, events)
        strips_space = not server.engine.lm.chat_template.is_plain
        answer_format = ChatFormat(server.model_name, server.tokenizer, strips_space)
        return await _respond(server, events, [task], body, answer_format, request)


async def chat_task(server: Server, owner: str, body: ChatRequest, events: Events) -> GenerationTask:
    """The answers to a conversation.

    Raises:
        UserError: it cannot be written by the chat template, or a setting is out of range.
    """
    base = await base_file(server, owner, body.context)
    ids = await server.encode_chat([message.to_message() for message in body.messages], base)
    # A grammar says itself where the answer ends, and may have the empty line that ends others.
    stop = () if body.has_grammar else server.engine.lm.chat_template.stop(server.tokenizer)
    return GenerationTask(
        owner,
        events.put,
        ids,
        await asyncio.to_thread(body.sampling, stop),
        body.max_tokens_or_default,
        base=base,
        num_answers=body.n,
        num_logprobs=body.num_logprobs,
    )


async def base_file(server: Server, owner: str, context: str | None) -> Path | None:
    """The file of the context that comes before a prompt, if there is one."""
    return None if context is None else (await asyncio.to_thread(server.contexts.get, owner, context)).path


async def _respond(
    server: Server,
    events: Events,
    tasks: list[GenerationTask],
    body: GenerationRequest,
    answer_format: AnswerFormat,
    request: Request,
) -> JSONResponse | StreamingResponse:
    num_answers = len(tasks) * body.n
    arriving = events.start(server.engine, tasks)
    if body.stream:
        chunks = _chunks(arriving, num_answers, body.includes_usage, answer_format)
        return StreamingResponse(server_sent(chunks), media_type="text/event-stream")
    answers = list[Answer]()
    async with cancelled_on_disconnect(request, tasks):
        async for event in arriving:
            if isinstance(event, Answer):
                answers.append(event)
                if len(answers) == num_answers:
                    break
    return JSONResponse(answer_format.whole(sorted(answers, key=lambda answer: answer.index)))


async def _chunks(
    arriving: AsyncIterator[Event], num_answers: int, includes_usage: bool, answer_format: AnswerFormat
) -> AsyncIterator[dict[str, Any]]:
    for index in range(num_answers):
        if (begin := answer_format.begin(index)) is not None:
            yield begin
    answers = list[Answer]()
    async for event in arriving:
        if isinstance(event, Piece):
            yield answer_format.piece(event)
        elif isinstance(event, Answer):
            yield answer_format.end(event)
            answers.append(event)
            if len(answers) == num_answers:
                break
    if includes_usage:
        yield answer_format.usage(answers)
