"""`goldfinch chat`: a conversation with a model in the terminal."""

import contextlib
import dataclasses

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.chat_options import ChatOptions
from goldfinch.cli.contexts import ModelOrContextPath, print_stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(ChatOptions):
    """Chat with a model in the terminal. Ctrl-C ends an answer; Ctrl-D or an empty line ends the conversation.

    Messages are written as the model folder's chat template says, by default in RWKV's chat format: "User: ...", blank
    line, "Assistant:". For a model that was trained on plain text, use --plain, which continues your line.
    """

    source: tyro.conf.Positional[ModelOrContextPath]
    """Model folder, or a context file from `goldfinch read`: the conversation then follows what was read, and the file
    does not change."""

    def run(self) -> None:
        """Take turns until the user ends the conversation."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() line editing and history)
        session = self.session(self.open(self.source))
        while line := _input("> " if self.plain else f"{self.user}: "):
            if not self.plain:
                print(f"{self.assistant}:", end="")
            with session.ask(line, **self.generation_options()) as stream, contextlib.suppress(KeyboardInterrupt):
                print_stream(stream)
            print("\n")


def _input(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Chat, "chat", args).run()
