"""`goldfinch ask`: a question about what `goldfinch read` has read."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.chat_options import ChatOptions
from goldfinch.cli.contexts import print_stream, text_argument
from goldfinch.cli.conversation import Conversation
from goldfinch.cli.tables import print_json
from goldfinch.cli.terminal import shown
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.chat import ChatSession


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask(ChatOptions):
    """Ask about a text that was read before: goldfinch ask book.gfc "Who is Queequeg?"

    Without a question, a conversation about the text begins, as in goldfinch chat: later answers begin sooner, since
    the keys and values that the first one needed are kept.

    The text is not read again: the file opens at once, and the first token of the answer takes one pass of the GOLD
    layers over it. The file does not change, so the next question does not see this one; with --keep, question and
    answer are added to the file. Only the answer goes to standard output. For a model that was trained on plain text,
    use --plain, which continues your text:
    goldfinch ask book.gfc --plain "In short, the book is about"
    """

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.gfc")]]
    """Context file from `goldfinch read`."""
    question: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="QUESTION")] = None
    """The question; - reads it from standard input. Without one, several can be asked."""
    keep: bool = False
    """Add questions and answers to the file, for follow-up questions."""
    json: bool = False
    """Print one JSON object with the answer and its token counts instead of text."""

    def run(self) -> None:
        """Open, ask, print the answer as it is generated."""
        if self.question is None and self.json:
            raise UserError("--json needs a question")
        question = None if self.question is None else text_argument(self.question)
        if question == "":
            raise UserError("the question is empty: give at least one character")
        session = self.session(self.open_file(self.file))
        if question is None:
            Conversation(session, self.generation_options()).run()
        else:
            self._answer(session, question)
        if self.keep:
            session.keep_answer()
            session.context.save(self.file)
            print(f"questions and answers are now part of {shown(str(self.file), sys.stderr)}", file=sys.stderr)

    def _answer(self, session: "ChatSession", question: str) -> None:
        stream = session.ask(question, **self.generation_options())
        if self.json:
            generation = stream.run()
            content = dataclasses.asdict(generation) | {"text": generation.text.strip()}
            print_json(content, indent=None)
        else:
            print_stream(stream, strip=not self.plain)
            print()
            print(stream.generation.summary(), file=sys.stderr)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Ask, "ask", args).run()
