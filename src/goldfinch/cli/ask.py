"""`goldfinch ask`: a question to what `goldfinch read` has read."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import text_argument
from goldfinch.cli.turns import Turns
from goldfinch.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask(Turns):
    """Ask what was read, as often as you like: goldfinch ask book.gfc "Who is Queequeg?"

    The text is not read again, so that the answer begins at once, and the file stays as it is: the next question finds
    it without this one. With --keep, question and answer are added to it. The answer is all that goes to standard
    output. A model that was trained on plain text does better with --plain, which just goes on from yours:
    goldfinch ask book.gfc --plain "In short, the book is about"
    """

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.gfc")]]
    """What `goldfinch read` wrote."""
    question: tyro.conf.Positional[str]
    """The question; - reads it from standard input."""
    keep: bool = False
    """Add question and answer to the file, for questions that follow on."""


def main(args: list[str]) -> None:
    """Open, ask, print the answer as it is written."""
    command = parse(Ask, "ask", args)
    question = text_argument(command.question)
    if not question:
        raise UserError("the question is empty: ask for something, in at least one character")
    context = command.open_file(command.file)
    command.put(context, question)
    written, speculation = [], command.speculation()
    for piece in command.answer(context, speculation):
        written.append(piece)
        # The space after the name of the model belongs to the turn, not to the answer.
        print(piece.lstrip() if len(written) == 1 and not command.plain else piece, end="", flush=True)
    print()
    print(speculation.summary(), file=sys.stderr)
    if command.keep:
        command.close(context, "".join(written))
        context.save(command.file)
