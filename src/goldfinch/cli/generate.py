"""`goldfinch generate`: a model writes on from a text."""

import dataclasses
import sys
from typing import Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import ContextOptions, ModelOrContextPath, text_argument
from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(ContextOptions):
    """Let a model write on from a prompt: goldfinch generate runs/quickstart "Call me"

    Or from a text that `goldfinch read` has read: goldfinch generate book.gfc. The file stays as it is.
    """

    source: tyro.conf.Positional[ModelOrContextPath]
    """Folder of a model, that `goldfinch train` or `goldfinch convert` wrote, or a file that `goldfinch read` wrote."""
    prompt: tyro.conf.Positional[str] = ""
    """What to go on from; - reads it from standard input. Needed for a folder; for a file it comes after its text."""
    max_tokens: int = 200
    """Most tokens to write."""
    seed: int | None = None
    """The same seed writes the same text; without one it differs each time."""
    stop: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """End before this text; may be given several times."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(temperature=0.8, top_p=0.9)
    """How tokens are drawn."""


def main(args: list[str]) -> None:
    """Print the prompt and what the model adds, piece by piece."""
    command = parse(Generate, "generate", args)
    prompt = text_argument(command.prompt)
    context = command.open(command.source)
    if not (prompt or len(context)):
        raise UserError(
            "the prompt is empty: give the model at least one character to go on from (see goldfinch generate --help)"
        )
    speculation = command.speculation()
    print(prompt, end="", flush=True)
    pieces = context.generate(
        prompt or None,
        max_tokens=command.max_tokens,
        seed=command.seed,
        stop=command.stop,
        speculation=speculation,
        **dataclasses.asdict(command.sampling),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    print(speculation.summary(), file=sys.stderr)
