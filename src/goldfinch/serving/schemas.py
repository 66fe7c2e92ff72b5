"""What requests look like: OpenAI's fields that mean something here. Others are refused by name."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from goldfinch.inference.generation import DEFAULT_MAX_TOKENS
from goldfinch.inference.sampling import Sampling


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What all generations have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = Field(1.0, gt=0)
    logit_bias: dict[int, float] | None = None
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def max_tokens_or_default(self) -> int:
        """Maximum number of tokens."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def sampling(self, more_stops: Sequence[str | int] = ()) -> Sampling:
        """The same as settings of ours.

        Raises:
            UserError: a value is out of range.
        """
        names = {field.name for field in dataclasses.fields(Sampling)} - {"stop"}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(**self.model_dump(include=names, exclude_none=True), stop=(*stop, *more_stops))


class CompletionRequest(GenerationRequest):
    """`/v1/completions`."""

    prompt: str | list[int]


class ChatMessage(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(GenerationRequest):
    """`/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)

    @property
    def max_tokens_or_default(self) -> int:
        """Maximum number of tokens, by the newer name or the older one."""
        return super().max_tokens_or_default if self.max_completion_tokens is None else self.max_completion_tokens
