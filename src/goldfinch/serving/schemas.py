"""What requests look like: OpenAI's fields that mean something here. Others are refused by name."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from goldfinch.data.chat_template import Message
from goldfinch.errors import UserError
from goldfinch.inference.generation import DEFAULT_MAX_TOKENS
from goldfinch.inference.grammar import Grammar
from goldfinch.inference.sampling import Sampling

MAX_ANSWERS = 64
"""Answers to one request."""
MAX_ALTERNATIVES = 20
"""Log-probabilities of other tokens in the place of one."""


class Body(BaseModel):
    """Of any request. Types are JSON's: no text for a number, and no true for a token id."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class ClientNotes(Body):
    """What clients say for their own purposes. It changes no answer: what prompts share is found without being told."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """A schema with its name, as OpenAI's clients send it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    content: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema", "grammar", "regex"]
    json_schema: JsonSchema | None = None
    grammar: str | None = Field(None, description="a Lark grammar, for the type grammar")
    regex: str | None = Field(None, description="a regular expression, for the type regex")

    def to_grammar(self) -> Grammar | None:
        """The same as a grammar; None for any text.

        Raises:
            UserError: it is invalid, or what its type names is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar.json_object()
        given = getattr(self, self.type)
        if given is None:
            raise UserError(f"response_format: the type {self.type} needs a field {self.type}")
        if isinstance(given, JsonSchema):
            return Grammar.json_schema(given.content or {})
        return Grammar.regex(given) if self.type == "regex" else Grammar.lark(given)


class GenerationRequest(ClientNotes):
    """What all generations have in common."""

    model: str | None = None
    context: str | None = Field(None, description="id of a context whose text comes before the prompt")
    max_tokens: int | None = Field(None, ge=0)
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = Field(1.0, gt=0)
    logit_bias: dict[Annotated[int, Field(strict=False)], float] | None = None  # JSON's names of fields are text
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def max_tokens_or_default(self) -> int:
        """Maximum number of tokens."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def has_grammar(self) -> bool:
        """Whether the answer must match something."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, more_stops: Sequence[str | int] = ()) -> Sampling:
        """The same as settings of ours.

        Raises:
            UserError: a value is out of range.
        """
        names = {field.name for field in dataclasses.fields(Sampling)} - {"stop", "grammar"}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        grammar = None if self.response_format is None else self.response_format.to_grammar()
        settings = self.model_dump(include=names, exclude_none=True)
        return Sampling(**settings, stop=(*stop, *more_stops), grammar=grammar)


class CompletionRequest(GenerationRequest):
    """`/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several texts, or token ids."""
        if isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]  # a list of integers: its first is one
        return list(self.prompt)


class TextPart(Body):
    """Text, as newer clients send it."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def to_message(self) -> Message:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(GenerationRequest):
    """`/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @property
    def max_tokens_or_default(self) -> int:
        """Maximum number of tokens, by the newer name or the older one."""
        return super().max_tokens_or_default if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As in `Context.stream`."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None


class InputMessage(ChatMessage):
    """A message, as `/v1/responses` takes it."""

    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None


class TextFormat(JsonSchema):
    """What an answer must look like, as `/v1/responses` takes it: a schema with its name beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOptions(Body):
    """How text is written."""

    format: TextFormat = TextFormat()


class ResponsesRequest(ClientNotes):
    """`/v1/responses`: one answer, nothing kept by the server but contexts."""

    model: str | None = None
    context: str | None = Field(None, description="id of a context whose text comes before the input")
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    text: TextOptions = TextOptions()
    stream: bool = False

    def to_chat(self) -> ChatRequest:
        """The same as `/v1/chat/completions` takes it."""
        messages = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += self.input
        form = self.text.format
        schema = form if form.type == "json_schema" else None
        return ChatRequest(
            messages=messages,
            context=self.context,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=ResponseFormat(type=form.type, json_schema=schema),
        )


class NamedText(Body):
    """A document."""

    name: str
    text: str


class ReadRequest(Body):
    """A text for a context, in one of these forms."""

    text: str | None = None
    token_ids: list[int] | None = None
    documents: list[NamedText] | None = None
    messages: list[ChatMessage] | None = None
    stream: bool = False


class CreateContextRequest(ReadRequest):
    """`/v1/contexts`."""

    name: str | None = None
    parent: str | None = Field(None, description="id of the context whose text it begins with")
    length: int | None = Field(None, ge=1, description="tokens of the parent to keep; all without it")


class TruncateRequest(Body):
    """`/v1/contexts/ID/truncate`."""

    length: int = Field(ge=1)


class ForkRequest(Body):
    """`/v1/contexts/ID/fork`."""

    name: str | None = None
    length: int | None = Field(None, ge=1)


class RenameRequest(Body):
    """`PATCH /v1/contexts/ID`."""

    name: str


class TokenizeRequest(Body):
    """`/tokenize`."""

    text: str


class DetokenizeRequest(Body):
    """`/detokenize`."""

    tokens: list[int]
