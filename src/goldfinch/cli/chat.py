"""`goldfinch chat`: writing with a model in turns."""

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import ModelOrContextPath
from goldfinch.cli.turns import Turns

if TYPE_CHECKING:
    from goldfinch.inference.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(Turns):
    """Write with a model in turns. Ctrl-C ends its turn, Ctrl-D or an empty line the conversation.

    Turns are written as RWKV's chat models know them: names before each, an empty line after. A model that was
    trained on plain text does better with --plain, which just goes on from your line.
    """

    source: tyro.conf.Positional[ModelOrContextPath]
    """Folder of a model, that `goldfinch train` or `goldfinch convert` wrote, or a file that `goldfinch read` wrote.
    The conversation then comes after what was read, and the file stays as it is."""


def main(args: list[str]) -> None:
    """Take turns until the user ends it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() line editing and history)
    command = parse(Chat, "chat", args)
    context = command.open(command.source)
    while line := _ask("> " if command.plain else f"{command.user}: "):
        command.put(context, line)
        if not command.plain:
            print(f"{command.assistant}:", end="")
        command.close(context, _answer(context, command))


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def _answer(context: "Context", command: Chat) -> str:
    """Print the model's turn piece by piece and return it; Ctrl-C ends it early."""
    written = []
    with contextlib.suppress(KeyboardInterrupt):
        for piece in command.answer(context):
            written.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    print("\n")
    return "".join(written)
