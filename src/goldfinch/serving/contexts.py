"""The routes of contexts as resources: read once, kept as files, forked, searched, downloaded and brought back."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import PurePath
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from goldfinch.data.text_encoding import UTF8
from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.text import StoredText
from goldfinch.inference.documents import shown_name
from goldfinch.serving.context_source import check_file
from goldfinch.serving.context_store import SUFFIX, StoredContext, check_name
from goldfinch.serving.errors import ApiError
from goldfinch.serving.events import STREAM_RESPONSE, Events, cancelled_on_disconnect, server_sent
from goldfinch.serving.schemas import (
    CreateContextRequest,
    ForkRequest,
    ReadRequest,
    RenameRequest,
    TruncateRequest,
)
from goldfinch.serving.server import Owner, Server
from goldfinch.serving.tasks import Event, Progress, ReadTask, Text

SECONDS_BETWEEN_PROGRESS = 0.25
MAX_MATCHES = 1000
MAX_TEXT_TOKENS = 100_000
"""Of one answer."""
SURROUNDING_CHARACTERS = 80
"""On either side of what was found."""
FILE_RESPONSE: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}

Json = dict[str, Any]


def add_context_routes(app: FastAPI, server: Server) -> None:
    """Let an application keep contexts."""
    store = server.contexts
    contexts = _Contexts(server)

    # Routes that only look at files are no coroutines: FastAPI gives each a thread, and others are answered meanwhile.

    @app.get("/v1/contexts")
    def list_contexts(owner: Owner) -> Json:
        return {"object": "list", "data": [contexts.shown(each) for each in store.list(owner)]}

    @app.post("/v1/contexts", status_code=201, response_model=None, responses={201: STREAM_RESPONSE})
    async def create(body: CreateContextRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        if body.name:
            check_name(body.name)
        base = None if body.parent is None else await asyncio.to_thread(store.get, owner, body.parent)
        if body.length is not None and base is None:
            raise ApiError(400, "length: it is of a parent, which is missing", param="length")
        texts = await contexts.texts(body, base, bool(body.length))
        return await contexts.read(
            request, owner, base, body.length, texts, lambda read: store.add(owner, read, body.name), body.stream
        )

    @app.post("/v1/contexts/upload", status_code=201, response_model=None, responses={201: STREAM_RESPONSE})
    async def upload(
        request: Request,
        owner: Owner,
        files: Annotated[list[UploadFile], File(description="text files, or one .gfc file")],
        name: Annotated[str | None, Form()] = None,
        stream: Annotated[bool, Form()] = False,
    ) -> JSONResponse | StreamingResponse:
        if name:
            check_name(name)
        if len(files) == 1 and _base_name(files[0]).endswith(SUFFIX):
            stored = await contexts.keep_file(owner, files[0], name)
            return JSONResponse(contexts.shown(stored), 201)
        documents = [(_base_name(file), await _text_of(file)) for file in files]
        texts = await contexts.documents(documents, follows=False)
        return await contexts.read(request, owner, None, None, texts, lambda read: store.add(owner, read, name), stream)

    @app.get("/v1/contexts/{id}")
    def info(id: str, owner: Owner) -> Json:
        return contexts.shown(store.get(owner, id))

    @app.patch("/v1/contexts/{id}")
    def rename(id: str, body: RenameRequest, owner: Owner) -> Json:
        return contexts.shown(store.rename(owner, id, body.name))

    @app.delete("/v1/contexts/{id}")
    def delete(id: str, owner: Owner) -> Json:
        store.delete(owner, id)
        return {"id": id, "object": "context", "deleted": True}

    @app.post("/v1/contexts/{id}/append", response_model=None, responses={200: STREAM_RESPONSE})
    async def append(id: str, body: ReadRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        stored = await asyncio.to_thread(store.get, owner, id)
        texts = await contexts.texts(body, stored)
        if not texts:
            raise ApiError(400, "there is nothing to append: give text, token_ids, documents or messages")
        return await contexts.change(request, owner, stored, None, texts, body.stream)

    @app.post("/v1/contexts/{id}/truncate", response_model=None)
    async def truncate(
        id: str, body: TruncateRequest, request: Request, owner: Owner
    ) -> JSONResponse | StreamingResponse:
        stored = await asyncio.to_thread(store.get, owner, id)
        return await contexts.change(request, owner, stored, body.length, [], stream=False)

    @app.post("/v1/contexts/{id}/fork", status_code=201, response_model=None)
    async def fork(id: str, body: ForkRequest, request: Request, owner: Owner) -> JSONResponse | StreamingResponse:
        parent = await asyncio.to_thread(store.get, owner, id)
        name = check_name(body.name or parent.note.name)
        return await contexts.read(
            request, owner, parent, body.length, [], lambda read: store.add(owner, read, name), stream=False
        )

    @app.get("/v1/contexts/{id}/file", response_class=FileResponse, responses={200: FILE_RESPONSE})
    def file(id: str, owner: Owner) -> FileResponse:
        stored = store.get(owner, id)
        return FileResponse(
            stored.path, media_type="application/octet-stream", filename=f"{stored.note.name.removesuffix(SUFFIX)}.gfc"
        )

    @app.get("/v1/contexts/{id}/text")
    def text(
        id: str, owner: Owner, start: Annotated[int, Query(ge=0)] = 0, stop: Annotated[int | None, Query(ge=0)] = None
    ) -> Json:
        stored = store.get(owner, id)
        num_tokens = stored.description.num_tokens
        start = min(start, num_tokens)
        stop = min(num_tokens if stop is None else stop, num_tokens, start + MAX_TEXT_TOKENS)
        text = "".join(contexts.text(stored).read(start, stop))
        return {"start": start, "stop": max(start, stop), "text": text}

    @app.get("/v1/contexts/{id}/search")
    def search(
        id: str,
        owner: Owner,
        query: Annotated[str, Query(min_length=1)],
        ignore_case: bool = True,
        limit: Annotated[int, Query(ge=1, le=MAX_MATCHES)] = 20,
    ) -> Json:
        return contexts.search(store.get(owner, id), query, ignore_case, limit)


class _Contexts:
    """What the routes do."""

    def __init__(self, server: Server) -> None:
        self._server, self._store = server, server.contexts
        self._transformer_bytes_per_token = server.engine.costs.transformer_bytes_per_token
        self._bytes_per_token = server.engine.bytes_per_token

    def shown(self, stored: StoredContext) -> Json:
        """A context as clients see it."""
        description = stored.description
        return {
            "id": stored.id,
            "object": "context",
            "name": stored.note.name,
            "created_at": stored.note.created_at,
            "last_used_at": int(stored.last_used_at),
            "num_tokens": description.num_tokens,
            "documents": [vars(document) for document in description.documents],
            "bytes": stored.nbytes,
            "transformer_bytes": self._transformer_bytes_per_token * description.num_tokens,
        }

    async def texts(self, body: ReadRequest, base: StoredContext | None, is_cut: bool = False) -> list[Text]:
        """What a request wants to be read."""
        given = [name for name in ("text", "token_ids", "documents", "messages") if getattr(body, name) is not None]
        if len(given) > 1:
            raise ApiError(400, f"{given[1]}: give one of {', '.join(given)}", param=given[1])
        if body.text is not None:
            return [Text(await self._server.encode(body.text))]
        if body.token_ids is not None:
            return [Text(await self._server.encode(body.token_ids))]
        if body.documents is not None:
            return await self.documents([(each.name, each.text) for each in body.documents], base is not None)
        if body.messages is not None:
            messages = [message.to_message() for message in body.messages]
            path = None if is_cut or base is None else base.path
            return [Text(await self._server.encode_chat(messages, path, asks=False))]
        return []

    async def documents(self, documents: list[tuple[str, str]], follows: bool) -> list[Text]:
        """Documents, parted by an end of text as in training, the first too if it follows another text."""
        texts, end = list[Text](), np.array([self._server.tokenizer.end_of_text])
        for name, text in documents:
            if texts or follows:
                texts.append(Text(end))
            texts.append(Text(await self._server.encode(text), name))
        return texts

    async def read(
        self,
        request: Request,
        owner: str,
        base: StoredContext | None,
        length: int | None,
        texts: list[Text],
        save: Callable[[Context], StoredContext],
        stream: bool,
        in_place_of: str = "",
    ) -> JSONResponse | StreamingResponse:
        """Read texts after a context, save the result, and answer with it."""
        status = 200 if in_place_of else 201
        await asyncio.to_thread(self._check_room, owner, base, length, texts, in_place_of)
        events = Events()
        task = ReadTask(owner, events.put, None if base is None else base.path, length, texts)
        bodies = self._progress(events.start(self._server.engine, [task]), save)
        if stream:
            return StreamingResponse(server_sent(bodies), status, media_type="text/event-stream")
        async with cancelled_on_disconnect(request, [task]):
            *_, last = [body async for body in bodies]
        replayed = {} if length is None else {"replayed_tokens": task.num_replayed}
        return JSONResponse(last | replayed, status)

    async def change(
        self, request: Request, owner: str, stored: StoredContext, length: int | None, texts: list[Text], stream: bool
    ) -> JSONResponse | StreamingResponse:
        """Read texts after a context and save the result in its place, unless it was changed in the meantime."""

        def save(read: Context) -> StoredContext:
            return self._store.replace(owner, stored.id, read)

        return await self.read(request, owner, stored, length, texts, save, stream, in_place_of=stored.id)

    def _check_room(
        self, owner: str, base: StoredContext | None, length: int | None, texts: list[Text], in_place_of: str
    ) -> None:
        """Refuse a context that will not fit before it is read, which may take long."""
        num_tokens = sum(len(text.ids) for text in texts)
        if base is not None:
            num_stored = base.description.num_tokens
            num_tokens += num_stored if length is None else min(length, num_stored)
        self._store.check_room(owner, num_tokens * self._bytes_per_token, in_place_of)

    async def _progress(
        self, arriving: AsyncIterator[Event], save: Callable[[Context], StoredContext]
    ) -> AsyncIterator[Json]:
        started, shown_at = time.monotonic(), 0.0
        async for event in arriving:
            if isinstance(event, Context):
                yield self.shown(await asyncio.to_thread(save, event))
                return
            now = time.monotonic()
            if isinstance(event, Progress) and now - shown_at >= SECONDS_BETWEEN_PROGRESS:
                shown_at = now
                left = (now - started) / event.num_read * (event.num_total - event.num_read)
                yield {
                    "object": "context.progress",
                    "tokens_read": event.num_read,
                    "tokens_total": event.num_total,
                    "bytes": self._bytes_per_token * event.num_read,
                    "transformer_bytes": self._transformer_bytes_per_token * event.num_read,
                    "seconds_left": round(left, 1),
                }

    async def keep_file(self, owner: str, file: UploadFile, name: str | None) -> StoredContext:
        """Check a .gfc file and keep it as it is."""
        with self._store.temporary_file() as path:
            with path.open("wb") as copy:
                await asyncio.to_thread(shutil.copyfileobj, file.file, copy)
            try:
                await asyncio.to_thread(check_file, self._server.engine.lm, path)
            except UserError as error:  # which names the copy here
                raise UserError(str(error).replace(str(path), _base_name(file))) from error
            name = name or _base_name(file).removesuffix(SUFFIX)
            return await asyncio.to_thread(self._store.add_file, owner, path, name)

    def text(self, stored: StoredContext) -> StoredText:
        """The text of a context."""
        return StoredText(stored.path, stored.description, self._server.tokenizer)

    def search(self, stored: StoredContext, query: str, ignore_case: bool, limit: int) -> Json:
        """Where a string occurs, with what is around it."""
        hits = self.text(stored).find(query, ignore_case=ignore_case, context_chars=SURROUNDING_CHARACTERS)
        matches, total = list[Json](), 0
        for hit in hits:
            total += 1
            if total <= limit:
                matches.append(
                    {
                        "start": hit.position,
                        "document": hit.document,
                        "before": hit.before,
                        "match": hit.text,
                        "after": hit.after,
                    }
                )
        return {"matches": matches, "total": total}


def _base_name(file: UploadFile) -> str:
    """A file's name without folders, fit to be shown."""
    return shown_name(PurePath((file.filename or "").replace("\\", "/")).name) or "document"


async def _text_of(file: UploadFile) -> str:
    content = await file.read()
    try:
        text = content.decode(UTF8)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ApiError(
            400, f"{_base_name(file)} is not UTF-8 text: convert it, or give it to `goldfinch read` and upload the .gfc"
        )
    if not text:
        raise ApiError(400, f"{_base_name(file)} is empty")
    return text
