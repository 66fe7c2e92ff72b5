"""A conversation on a context."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from goldfinch.data.chat_template import ChatTemplate, Message
from goldfinch.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    from goldfinch.inference.context import Context
    from goldfinch.inference.generation import GenerationStream


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
            new = gap_before_chat(self.template, self.context.tokenizer, self._last_ids()) + new
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

    def _last_ids(self) -> list[int]:
        return self.context.ids(max(self._start - 2, 0), self._start)


def gap_before_chat(template: ChatTemplate, tokenizer: Tokenizer | None, last_ids: Sequence[int]) -> str:
    """What is missing to an empty line before the first message, if a text precedes it.

    Args:
        template: how messages are written.
        tokenizer: of the model.
        last_ids: at least the last two tokens of the text; fewer if it is shorter.
    """
    if template.is_plain or not last_ids or tokenizer is None:
        return ""
    end = tokenizer.decode(last_ids[-2:])
    return "\n\n"[len(end) - len(end.rstrip("\n")) :]
