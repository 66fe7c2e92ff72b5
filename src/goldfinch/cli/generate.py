"""`goldfinch generate`: a model writes on from a prompt."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Let a model write on from a prompt: goldfinch generate runs/quickstart "Call me"."""

    run: tyro.conf.Positional[Path]
    """Folder of a model: a run of `goldfinch train`, or what `goldfinch convert` wrote."""
    prompt: tyro.conf.Positional[str]
    """What to go on from; - reads it from standard input."""
    max_tokens: int = 200
    """Most tokens to write."""
    seed: int | None = None
    """The same seed writes the same text; without one it differs each time."""
    stop: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """End before this text; may be given several times."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(temperature=0.8, top_p=0.9)
    """How tokens are drawn."""
    dtype: str | None = None
    """Type of the weights, such as bfloat16; as they are stored if not given."""
    device: str = "cpu"
    """cpu, cuda, ..."""


def main(args: list[str]) -> None:
    """Print the prompt and what the model adds, piece by piece."""
    command = parse(Generate, "generate", args)
    prompt = _standard_input() if command.prompt == "-" else command.prompt
    if not prompt:
        raise UserError("the prompt is empty: give the model at least one character to go on from")

    from goldfinch import load

    context = load(command.run, command.dtype, command.device).read(prompt)
    print(prompt, end="", flush=True)
    pieces = context.generate(
        max_tokens=command.max_tokens, seed=command.seed, stop=command.stop, **dataclasses.asdict(command.sampling)
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error}") from error
