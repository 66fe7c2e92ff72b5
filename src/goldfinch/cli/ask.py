"""`goldfinch ask`: a question about what `goldfinch read` has read."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.chat_options import ChatOptions
from goldfinch.cli.contexts import print_stream, text_argument
from goldfinch.cli.tables import print_json
from goldfinch.cli.terminal import shown
from goldfinch.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask(ChatOptions):
    """Ask about a text that was read before: goldfinch ask book.gfc "Who is Queequeg?"

    The text is not read again: the file opens at once, and the first token of the answer takes one pass of the GOLD
    layers over it. The file does not change, so the next question does not see this one; with --keep, question and
    answer are added to the file. Only the answer goes to standard output. For a model that was trained on plain text,
    use --plain, which continues your text:
    goldfinch ask book.gfc --plain "In short, the book is about"
    """

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.gfc")]]
    """Context file from `goldfinch read`."""
    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")]
    """The question; - reads it from standard input."""
    keep: bool = False
    """Add question and answer to the file, for follow-up questions."""
    json: bool = False
    """Print one JSON object with the answer and its token counts instead of text."""

    def run(self) -> None:
        """Open, ask, print the answer as it is generated."""
        question = text_argument(self.question)
        if not question:
            raise UserError("the question is empty: give at least one character")
        session = self.session(self.open_file(self.file))
        stream = session.ask(question, **self.generation_options())
        if self.json:
            generation = stream.run()
            content = dataclasses.asdict(generation) | {"text": generation.text.strip()}
            print_json(content, indent=None)
        else:
            print_stream(stream, strip=not self.plain)
            print()
            print(stream.generation.summary(), file=sys.stderr)
        if self.keep:
            session.context.save(self.file)
            print(f"question and answer are now part of {shown(str(self.file), sys.stderr)}", file=sys.stderr)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Ask, "ask", args).run()
