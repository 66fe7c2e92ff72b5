"""What all routes share."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

from fastapi import Depends, Request

from goldfinch.data.chat_template import Message
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.files import read_unchanged
from goldfinch.inference.chat import gap_before_chat
from goldfinch.inference.context_file.description import read_description
from goldfinch.inference.context_file.format import open_key_cache
from goldfinch.inference.token_ids import require_tokenizer, token_ids
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.radix_tree import Ids


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
    key_cache = read_unchanged(path, lambda: open_key_cache(path, read_description(path)))
    return cast(list[int], key_cache.ids(max(len(key_cache) - 2, 0), len(key_cache)).tolist())


def _owner(request: Request) -> str:
    return cast(str, getattr(request.state, "owner", ""))


Owner = Annotated[str, Depends(_owner)]
"""Whose request it is: "" where there are no keys."""
