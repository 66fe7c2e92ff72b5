"""How conversations are written as text: a Jinja template, as in the ecosystem."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from goldfinch.argument_checks import shortened, string
from goldfinch.data.tokenizer_config import TOKENIZER_CONFIG
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import one_line, write_text
from goldfinch.json_yaml import read_json

CHAT_TEMPLATE = "chat_template.jinja"
MAX_CONFIG_BYTES = 1 << 26  # some list a thousand special tokens

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

# How `ChatTemplate.standalone` writes a variable, in a line of its own, which Jinja's `trim_blocks` removes.
_SET = re.compile(r"\{% set (?P<name>\w+) = (?P<value>\"(?:[^\"\\]|\\.)*\") %\}\n")


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
        for field in dataclasses.fields(self):
            string(field.name, getattr(self, field.name))
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
                return cls.from_standalone(path.read_text(encoding="utf-8"))
            if config.exists():
                source = read_json(config, MAX_CONFIG_BYTES).get("chat_template")
                return cls.from_standalone(source) if isinstance(source, str) else None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"cannot read the chat template of {folder}: {one_line(error)}") from error
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        return None

    @classmethod
    def read(cls, path: Path) -> "ChatTemplate":
        """The template in a Jinja file, or of a model folder.

        Raises:
            UserError: it is missing, cannot be read or is not valid.
        """
        if path.is_dir():
            template = cls.load(path)
            if template is None:
                raise UserError(f"{path} has no chat template: give a Jinja file")
            return template
        try:
            return cls.from_standalone(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the chat template {path}: {one_line(error)}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write chat_template.jinja, for us and for Hugging Face's libraries."""
        write_text(folder / CHAT_TEMPLATE, self.standalone)

    @property
    def standalone(self) -> str:
        """The template for programs that do not supply its variables as we do, Hugging Face's libraries among them.

        >>> print(ChatTemplate("{{ assistant }} says:", assistant="Ishmael").standalone)
        {% set assistant = "Ishmael" %}
        {{ assistant }} says:

        Its first lines set the names and the special tokens that it uses: they know no names, and have tokens where we
        have none.
        """
        used = {node.name for node in _environment().parse(self.source).find_all(jinja2.nodes.Name)}
        lines = [
            f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n"
            for name, value in self._variables().items()
            if name in used
        ]
        return "".join(lines) + self.source

    @classmethod
    def from_standalone(cls, text: str) -> "ChatTemplate":
        """The template that `standalone` wrote; any other text is the template itself.

        Raises:
            UserError: it is not valid Jinja.
        """
        start, names = 0, {}
        while line := _SET.match(text, start):
            start = line.end()
            if line["name"] in ("user", "assistant"):
                with contextlib.suppress(ValueError):  # a string of Jinja's that is none of JSON's
                    names[line["name"]] = json.loads(line["value"])
        template = cls(text[start:], **names)
        return template if template.standalone == text else cls(text)

    def _variables(self) -> dict[str, str]:
        """What each template may use besides the conversation."""
        return {"user": self.user, "assistant": self.assistant, "bos_token": "", "eos_token": ""}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write messages as text, by default up to where the next answer starts.

        Raises:
            UserError: a message has no role or content, or the template refuses the conversation.
        """
        if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
            raise UserError(f"messages must be a list of messages, not {shortened(messages)}")
        messages = list(messages)
        if not messages:
            raise UserError("the list of messages is empty: give one such as {'role': 'user', 'content': '...'}")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise UserError(f"a chat message needs a role and a content, not {shortened(message)}")
            for field in ("role", "content"):
                string(f"the {field} of a chat message", message[field])
        try:
            return _compile(self.source).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self._variables(),
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error

    def answer_spans(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Where the answers are in the text of a conversation, each with what the template writes after it.

        >>> ChatTemplate().answer_spans([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
        [(20, 25)]

        Raises:
            UserError: as `render`; or an answer does not follow the text that asks for it.
        """
        text = self.render(messages, add_generation_prompt=False)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.render(messages[:number]) if number else ""
                answered = self.render(messages[: number + 1], add_generation_prompt=False)
                if not (answered.startswith(prompt) and text.startswith(answered)):
                    raise UserError("the chat template does not write answers after their prompts")
                spans.append((len(prompt), len(answered)))
        return spans

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
    return _environment().from_string(source)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
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
    return environment
