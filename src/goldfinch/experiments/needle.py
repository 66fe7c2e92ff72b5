"""A pass key hidden in a long text: does the model find it, at any depth and length?"""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from goldfinch.data.moby_dick import moby_dick
from goldfinch.errors import UserError
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import write_text
from goldfinch.inference.continuations import Continuation, score_continuations
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.token_ids import require_tokenizer
from goldfinch.plots import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, PLOT, DATA = "results.md", "needle.png", "results.json"
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NUM_KEYS = 10
"""Keys that the model chooses from, the right one among them: a tenth of the answers are right by chance."""

Haystack = Literal["filler", "moby-dick"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The answers at one length and depth."""

    length: int
    """Tokens of the text, with needle and question."""
    depth: float
    """Where the needle is: 0 at the start, 1 at the end."""
    exact: float
    """Fraction of the trials in which greedy decoding gives the key."""
    chosen: float
    """Fraction in which the key is more probable than all others of `NUM_KEYS`."""
    nats_per_token: float
    """Mean negative log-probability of a token of the key."""
    trials: int


def depths(count: int) -> list[float]:
    """`count` depths from the start of the text to its end.

    >>> depths(5)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return [index / (count - 1) for index in range(count)] if count > 1 else [0.5]


def measure_needle(
    lm: LanguageModel,
    lengths: Sequence[int],
    num_depths: int,
    trials: int,
    haystack: Haystack,
    progress: Callable[[Cell], None],
    seed: int = 0,
) -> list[Cell]:
    """Hide keys at every depth of texts of every length, and ask for them.

    What lies before the needle is read once for all depths of a trial.

    Args:
        lm: with a tokenizer.
        lengths: of the texts, in tokens.
        num_depths: number of depths, evenly spaced from start to end.
        trials: keys for each length and depth.
        haystack: what surrounds the needle: one paragraph again and again, or Moby-Dick.
        progress: called with each cell.
        seed: of the keys and of where Moby-Dick begins.

    Raises:
        UserError: the model has no tokenizer, or a length is too short for needle and question.
    """
    cells = []
    for length in sorted(lengths):
        answers = [list[tuple[float, int, bool, bool]]() for _ in range(num_depths)]
        for trial in range(trials):
            draw_ = random.Random(f"{seed} {length} {trial}")
            for own, answer in zip(answers, _trial(lm, length, depths(num_depths), haystack, draw_), strict=True):
                own.append(answer)
        for depth, own in zip(depths(num_depths), answers, strict=True):
            nats, tokens, exact, chosen = (sum(each) for each in zip(*own, strict=True))
            cells.append(
                Cell(
                    length=length,
                    depth=depth,
                    exact=exact / trials,
                    chosen=chosen / trials,
                    nats_per_token=nats / tokens,
                    trials=trials,
                )
            )
            progress(cells[-1])
    return cells


def _trial(
    lm: LanguageModel, length: int, where: Sequence[float], haystack: Haystack, draw_: random.Random
) -> Iterator[tuple[float, int, bool, bool]]:
    """For each depth, nats and tokens of the key, whether it is the greedy answer, and whether it is chosen."""
    encode = require_tokenizer(lm.tokenizer).encode
    keys = [str(key) for key in draw_.sample(range(10000, 100000), NUM_KEYS)]
    needle, question = encode(NEEDLE.format(key=keys[0])), encode(QUESTION)
    room = length - len(needle) - len(question)
    if room < 1:
        raise UserError(f"a text of {length:,} tokens has no room: needle and question take {length - room}")
    text = _haystack(encode, room, haystack, draw_)
    answers = [Continuation(tuple(encode(f" {key}")), len(encode(f" {key}"))) for key in keys]
    read = lm.context()
    for depth in where:
        start = round(depth * room)
        if start > len(read):
            read.read(text[len(read) : start])
        context = read.fork()
        context.read([*needle, *text[start:], *question])
        (right, is_greedy), *others = score_continuations(context.sequence, answers)
        # By token, so that keys of more tokens are not at a disadvantage.
        mean = sum(right) / len(right)
        chosen = all(mean > sum(other) / len(other) for other, _ in others)
        yield -sum(right), len(right), is_greedy, chosen


def _haystack(encode: Callable[[str], list[int]], room: int, kind: Haystack, draw_: random.Random) -> list[int]:
    """`room` tokens."""
    if kind == "filler":
        text = FILLER
    else:
        book = moby_dick()
        start = draw_.randrange(len(book))
        text = book[start:] + book[:start]
        text = text[: 16 * room + 16]  # no token has so many characters on average
    return list(itertools.islice(itertools.cycle(encode(text)), room))


def write_needle_report(cells: Sequence[Cell], model: str, haystack: Haystack, output: Path) -> None:
    """Write results.md, results.json and needle.png, depth against length, into `output`."""
    content = {"model": model, "haystack": haystack, "cells": [dataclasses.asdict(cell) for cell in cells]}
    write_text(output / DATA, json.dumps(content, indent=1) + "\n")
    lines = [
        (f"{c.length:,}", f"{c.depth:.0%}", f"{c.exact:.0%}", f"{c.chosen:.0%}", f"{c.nats_per_token:.3f}")
        for c in cells
    ]
    parts = [
        "# A pass key in a long text",
        f"Model: {model}. Text around it: {haystack}. {cells[0].trials} keys for each length and depth.",
        markdown_table(("tokens", "depth", "exact", f"first of {NUM_KEYS}", "nats per token"), lines, words=0),
        f"Exact: greedy decoding gives the key. First of {NUM_KEYS}: the key is the most probable of {NUM_KEYS} keys, "
        f"which {1 / NUM_KEYS:.0%} are by chance. Depth 0% is the start of the text.",
        f"![Depth against length]({PLOT})",
    ]
    write_text(output / RESULTS, "\n\n".join(parts) + "\n")
    draw(output / PLOT, lambda axes: _plot(axes, cells))


def _plot(axes: "Axes", cells: Sequence[Cell]) -> None:
    lengths, rows = sorted({cell.length for cell in cells}), sorted({cell.depth for cell in cells})
    chosen = {(cell.depth, cell.length): cell.chosen for cell in cells}
    image = [[chosen[depth, length] for length in lengths] for depth in rows]
    shown = axes.imshow(image, aspect="auto", vmin=0, vmax=1, cmap="RdYlGn")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(rows)), [f"{depth:.0%}" for depth in rows])
    axes.set(xlabel="tokens", ylabel="depth of the pass key", title=f"the key is the most probable of {NUM_KEYS}")
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(shown, ax=axes)
