"""Chat: how messages are written as text (a Jinja template, as in the ecosystem), and a conversation on a context."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from goldfinch.checkpoint.model_folder import CHAT_TEMPLATE
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import one_line, write_text

if TYPE_CHECKING:
    from goldfinch.inference.context import Context
    from goldfinch.inference.generation import GenerationStream

TOKENIZER_CONFIG = "tokenizer_config.json"

Message = Mapping[str, str]
"""{"role": "user", "content": "..."}; roles are "system", "user" and "assistant"."""

# Names before each message and an empty line after it: what RWKV's chat models are trained on.
RWKV = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ user }}: {% elif message.role == 'assistant' %}{{ assistant }}: {% endif %}"
    "{{ message.content }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ assistant }}:{% endif %}"
)
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
_MARKER = "\u241f"  # a symbol that no template contains


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written as text, as a Jinja template with the variables of Hugging Face's.

    >>> print(ChatTemplate().render([{"role": "user", "content": "Who is Ahab?"}]))
    User: Who is Ahab?
    <BLANKLINE>
    Assistant:

    The template runs in a sandbox. It gets `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, and the names
    `user` and `assistant`.

    Raises:
        UserError: the template is not valid Jinja.
    """

    source: str = RWKV
    """The template."""
    user: str = "User"
    """Name of the user, for templates that write names."""
    assistant: str = "Assistant"
    """Name of the model, likewise."""

    def __post_init__(self) -> None:
        try:
            _compile(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja, line {error.lineno}: {error.message}") from error

    @classmethod
    def plain(cls) -> "ChatTemplate":
        """No names and no separators: the model continues the text as it is."""
        return cls(PLAIN)

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a model folder: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        Raises:
            UserError: a file cannot be read, or the template is not valid.
        """
        path, config = folder / CHAT_TEMPLATE, folder / TOKENIZER_CONFIG
        try:
            if path.exists():
                return cls(path.read_text(encoding="utf-8"))
            if config.exists():
                source = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
                return cls(source) if isinstance(source, str) else None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"cannot read the chat template of {folder}: {one_line(error)}") from error
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        return None

    def save(self, folder: Path) -> None:
        """Write chat_template.jinja."""
        write_text(folder / CHAT_TEMPLATE, self.source)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write messages as text, by default up to where the next answer starts.

        Raises:
            UserError: a message has no role or content, or the template refuses the conversation.
        """
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise UserError(f"a chat message needs a role and a content, not {message!r}")
        try:
            return _compile(self.source).render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                user=self.user,
                assistant=self.assistant,
                bos_token="",
                eos_token="",
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error

    @property
    def is_plain(self) -> bool:
        """Whether messages are written without anything around them."""
        return self.source == PLAIN

    def turn_end(self) -> str:
        """What the template writes after an answer: where the answer ends.

        >>> ChatTemplate().turn_end()
        '\\n\\n'
        """
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARKER}]
        return self.render(messages, add_generation_prompt=False).partition(_MARKER)[2]

    def stop(self, tokenizer: Tokenizer | None) -> tuple[str | int, ...]:
        """Where an answer ends, as `Sampling.stop`: the special token that ends a turn, or its text."""
        end = self.turn_end()
        special = tokenizer.special_token_ids if tokenizer is not None else {}
        for text, token in special.items():
            if text and end.startswith(text):
                return (token,)
        return (end,) if end else ()


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    """With the settings and functions that templates for transformers rely on."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


class ChatSession:
    """A conversation after what a context holds already. Answers stay in the context: nothing is read twice.

    Args:
        context: what was read before, or an empty one; it grows with the conversation.
        template: how messages are written.
    """

    def __init__(self, context: "Context", template: ChatTemplate) -> None:
        self.context = context
        self.template = template
        self.messages: list[Message] = []
        """The conversation so far."""
        self._start = len(context)
        self._text = ""
        self._turns: list[tuple[int, int, str]] = []  # before each `ask`: tokens, messages and text
        context.snapshot()

    def ask(self, content: str, role: str = "user", **options: Any) -> "GenerationStream":
        """Read a message and stream the answer; when the iteration ends, the answer is the last of `messages`.

        Args:
            content: what is said.
            role: who says it.
            **options: of `Context.stream`.

        Raises:
            UserError: as `Context.stream`, or the template refuses the conversation.
        """
        self.keep_answer()
        self._turns.append((len(self.context), len(self.messages), self._text))
        self.messages.append({"role": role, "content": content})
        text = self.template.render(self.messages)
        if not text.startswith(self._text):
            # The template now writes the past differently, as some do that drop earlier reasoning.
            self.context.truncate(self._start)
            self._text = ""
            self._turns = [(self._start, num_messages, "") for _, num_messages, _ in self._turns]
        new = text[len(self._text) :]
        if not self._text:
            new = self._gap() + new
        if new:
            self.context.read(new, special_tokens=True)
        self._text = text
        options["stop"] = (*self.template.stop(self.context.tokenizer), *options.get("stop", ()))
        self._stream = self.context.stream(**options)
        return self._stream

    def undo(self) -> str | None:
        """Forget the last message that was asked, and its answer.

        Returns:
            The message; None if there is none.
        """
        if not self._turns:
            return None
        length, num_messages, self._text = self._turns.pop()
        self._stream = None
        content = self.messages[num_messages]["content"]
        del self.messages[num_messages:]
        self.context.truncate(length)
        return content

    _stream: "GenerationStream | None" = None

    def keep_answer(self) -> None:
        """Add what the last stream generated to `messages`; `ask` does it too."""
        if self._stream is None:
            return
        answer, self._stream = self._stream.generation.text, None
        # The space after a name belongs to the template.
        content = answer if self.template.is_plain else answer.removeprefix(" ")
        self.messages.append({"role": "assistant", "content": content})
        # As the template writes it, up to the end of the answer: the context has it as the model wrote it.
        written = self.template.render(self.messages, add_generation_prompt=False)
        self._text = written.removesuffix(self.template.turn_end())

    def _gap(self) -> str:
        """What is missing to an empty line before the first message, if a text precedes it."""
        if self.template.is_plain or not self._start or self.context.tokenizer is None:
            return ""
        end = self.context.tokenizer.decode(self.context.ids(max(self._start - 2, 0), self._start))
        return "\n\n"[len(end) - len(end.rstrip("\n")) :]
