"""What all routes share, and how the server runs and ends."""

import asyncio
import dataclasses
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, cast

import uvicorn
from fastapi import Depends, FastAPI, Request

from goldfinch.data.chat_template import Message
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.inference.chat import gap_before_chat
from goldfinch.inference.context_file.description import read_description
from goldfinch.inference.context_file.format import open_key_cache
from goldfinch.inference.token_ids import require_tokenizer, token_ids
from goldfinch.serving.connections import uvicorn_config
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.radix_tree import Ids

SECONDS_TO_FINISH = 30
"""How long answers that are being written may take when the server is told to end."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A model that runs, and where its contexts are."""

    engine: Engine
    contexts: ContextStore
    model_name: str

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return require_tokenizer(self.engine.lm.tokenizer)

    async def encode(self, text: str | Sequence[int], *, special_tokens: bool = False) -> Ids:
        """Text or token ids as checked (T,) ids, not in the event loop: others are answered meanwhile.

        Raises:
            UserError: no tokens, or ids outside the vocabulary.
        """
        vocab_size = self.engine.lm.config.vocab_size
        ids = await asyncio.to_thread(token_ids, text, self.tokenizer, vocab_size, special_tokens)
        return cast(Ids, ids.numpy())

    async def encode_chat(self, messages: Sequence[Message], base: Path | None = None, *, asks: bool = True) -> Ids:
        """A conversation as the chat template writes it, after a context file if there is one.

        Args:
            messages: the conversation.
            base: the file.
            asks: whether it ends with the beginning of an answer.

        Raises:
            UserError: the template refuses it.
        """
        template = self.engine.lm.chat_template
        text = template.render(messages, add_generation_prompt=asks)
        if base is not None:
            last = await asyncio.to_thread(_last_ids, base)
            text = gap_before_chat(template, self.tokenizer, last) + text
        return await self.encode(text, special_tokens=True)


def _last_ids(path: Path) -> list[int]:
    """The last tokens of a context file, at most two."""
    key_cache = open_key_cache(path, read_description(path))
    return cast(list[int], key_cache.ids(max(len(key_cache) - 2, 0), len(key_cache)).tolist())


def _owner(request: Request) -> str:
    return cast(str, getattr(request.state, "owner", ""))


Owner = Annotated[str, Depends(_owner)]
"""Whose request it is: "" where there are no keys."""


def serve(app: FastAPI, engine: Engine, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Then nothing new is taken (503, also from `/health`, so that others send no more), and what was asked before has 30
    seconds. A second signal ends at once.
    """
    server = _DrainingServer(uvicorn_config(app), engine)
    server.run([listener])


class _DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal finish; on the second end."""
        if self._engine.is_stopping or sig not in (signal.SIGINT, signal.SIGTERM):
            super().handle_exit(sig, frame)
            return

        def drain() -> None:
            self._engine.stop(SECONDS_TO_FINISH)
            super(_DrainingServer, self).handle_exit(sig, frame)

        threading.Thread(target=drain, name="drain", daemon=True).start()
