"""`goldfinch generate`: generate text from a prompt."""

import dataclasses
import sys
from typing import Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import (
    DEFAULT_MAX_TOKENS,
    ContextOptions,
    ModelOrContextPath,
    print_stream,
    text_argument,
)
from goldfinch.cli.tables import print_json
from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(ContextOptions):
    """Generate text from a prompt: goldfinch generate runs/quickstart "Call me"

    Or after a text that was read before: goldfinch generate book.gfc. The file does not change.

    hf:OWNER/NAME is a model on the Hugging Face Hub, here and wherever a model is named.
    """

    source: tyro.conf.Positional[ModelOrContextPath]
    """Model folder from `goldfinch train` or `goldfinch convert`, or a context file from `goldfinch read`."""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")] = ""
    """Text to continue; - reads it from standard input. Required for a model; for a file it follows its text."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Maximum number of tokens to generate."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(temperature=0.8, top_p=0.9)
    """Sampling and stop conditions."""
    json: bool = False
    """Print one JSON object with the text and its token counts instead of text."""

    def run(self) -> None:
        """Print the prompt and what the model adds, piece by piece."""
        prompt = text_argument(self.prompt)
        context = self.open(self.source)
        if not (prompt or len(context)):
            raise UserError("the prompt is empty: give at least one character (see goldfinch generate --help)")
        stream = context.stream(
            prompt or None,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            max_draft_tokens=self.max_draft_tokens,
        )
        if self.json:
            print_json({"prompt": prompt, **dataclasses.asdict(stream.run())}, indent=None)
            return
        print_stream(stream, prompt=prompt)
        print()
        print(stream.generation.summary(), file=sys.stderr)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Generate, "generate", args).run()
