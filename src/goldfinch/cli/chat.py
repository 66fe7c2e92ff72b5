"""`goldfinch chat`: writing with a model in turns."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.inference.sampling import Sampling

if TYPE_CHECKING:
    from goldfinch.inference.context import Context

TURN_END = "\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Write with a model in turns. Ctrl-C ends its turn, Ctrl-D or an empty line the conversation.

    Turns are written as RWKV's chat models know them: names before each, an empty line after. A model that was
    trained on plain text does better with --plain, which just goes on from your line.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a model: a run of `goldfinch train`, or what `goldfinch convert` wrote."""
    plain: bool = False
    """No names: the model goes on from your line."""
    user: str = "User"
    """Your name."""
    assistant: str = "Assistant"
    """The model's name."""
    max_tokens: int = 300
    """Most tokens of a turn."""
    seed: int | None = None
    """The same seed and lines give the same conversation."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(
        temperature=1.0, top_p=0.7, presence_penalty=0.3, frequency_penalty=0.3
    )
    """How tokens are drawn."""
    dtype: str | None = None
    """Type of the weights, such as bfloat16; as they are stored if not given."""
    device: str = "cpu"
    """cpu, cuda, ..."""


def main(args: list[str]) -> None:
    """Take turns until the user ends it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() line editing and history)
    command = parse(Chat, "chat", args)

    from goldfinch import load
    from goldfinch.inference.context import Context

    lm = load(command.run, command.dtype, command.device)
    context = Context(lm.model, lm.tokenizer)
    while line := _ask("> " if command.plain else f"{command.user}: "):
        turn = line if command.plain else f"{command.user}: {line}{TURN_END}{command.assistant}:"
        context.read(turn)
        if not command.plain:
            print(f"{command.assistant}:", end="")
        # The answer is written in a fork and then read, so that no half of a stop text stays in the context.
        answer = _answer(context.fork(), command)
        context.read(answer + TURN_END)


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
        for piece in context.generate(
            max_tokens=command.max_tokens,
            seed=command.seed,
            stop=() if command.plain else (TURN_END,),
            **dataclasses.asdict(command.sampling),
        ):
            written.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    print("\n")
    return "".join(written)
