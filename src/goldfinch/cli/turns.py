"""Turns: how questions and answers stand in a text."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.contexts import ContextOptions
from goldfinch.inference.sampling import Sampling

if TYPE_CHECKING:
    from goldfinch.inference.context import Context
    from goldfinch.inference.speculation import Speculation

TURN_END = "\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns(ContextOptions):
    """Names before each turn and an empty line after it, as RWKV's chat models know them; or neither."""

    plain: bool = False
    """No names: the model goes on from your text as it is."""
    user: str = "User"
    """Your name."""
    assistant: str = "Assistant"
    """The model's name."""
    max_tokens: int = 300
    """Most tokens of an answer."""
    seed: int | None = None
    """The same seed gives the same answers to the same questions; without one they differ each time."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(
        temperature=1.0, top_p=0.7, presence_penalty=0.3, frequency_penalty=0.3
    )
    """How tokens are drawn."""

    def put(self, context: "Context", question: str) -> None:
        """Read the question, up to where the answer begins."""
        if not self.plain:
            question = f"{_gap(context)}{self.user}: {question}{TURN_END}{self.assistant}:"
        context.read(question)

    def answer(self, context: "Context", speculation: "Speculation | None" = None) -> Iterator[str]:
        """Write the answer, piece by piece. The context stays as it is, so that no half of a stop text gets into it."""
        return context.fork().generate(
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=() if self.plain else (TURN_END,),
            speculation=self.speculation() if speculation is None else speculation,
            **dataclasses.asdict(self.sampling),
        )

    def close(self, context: "Context", answer: str) -> None:
        """Read the answer: the next turn comes after it."""
        context.read(answer + TURN_END)


def _gap(context: "Context") -> str:
    """What is missing to an empty line, before a turn that does not begin the text."""
    from goldfinch.inference.token_ids import require_tokenizer

    if not len(context):
        return ""
    end = require_tokenizer(context.tokenizer).decode(context.ids(max(len(context) - len(TURN_END), 0)))
    return TURN_END[len(end) - len(end.rstrip("\n")) :]
