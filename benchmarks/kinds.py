"""Training steps of all kinds of the compare/ recipes: 5.0 million parameters each. `python benchmarks/kinds.py`

Interleaved, a step of each kind per repeat, with the batch and settings of the recipes. No speed is printed before the
loss of each kind is the cross entropy of all its logits.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import arguments, plot, report, spread
from steps import check_loss, make_step, random_windows

from goldfinch.benchmark.speed import fill_zero_weights
from goldfinch.benchmark.timing import interleave, seconds
from goldfinch.config import ModelConfig
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.recipes import recipe, recipe_names

BASELINE = "goldfinch"
CHECKED = (2, 32)  # sequences and tokens whose losses are compared


def main() -> None:
    """Parse, measure, print."""
    kinds = [name.rpartition("-")[2] for name in recipe_names() if name.startswith("compare/")]
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, help="default: that of the recipes")
    parser.add_argument("--sequence-length", type=int, help="default: that of the recipes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    taken = interleave({kind: partial(seconds, compare_step(options, kind)) for kind in options.kinds}, options.repeats)
    batch_size, length = batch_shape(options, recipe(f"compare/L6-D256-{BASELINE}"))
    tokens = batch_size * length
    baseline = taken.get(BASELINE)
    rows = [
        [
            kind,
            spread([tokens / one for one in samples.seconds]),
            f"{samples.times_faster(baseline):.2f}" if baseline else None,
        ]
        for kind, samples in sorted(taken.items(), key=lambda item: item[1].median)
    ]
    title = f"compare/L6-D256, {batch_size} x {length} tokens per step, fp32"
    if options.png:
        speeds = {kind: [tokens / one for one in samples.seconds] for kind, samples in taken.items()}
        plot(options.png, title, ("", "tokens/s"), {"training": speeds}, tick=str)
    report(title, ["kind", "tokens/s", f"times {BASELINE}"], rows, options.json)


def batch_shape(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[int, int]:
    """Sequences and their length."""
    return options.batch_size or settings["batch_size"], options.sequence_length or settings["sequence_length"]


def compare_step(options: argparse.Namespace, kind: str) -> Callable[[], None]:
    """A training step of one kind, as in its recipe."""
    settings = recipe(f"compare/L6-D256-{kind}", options.vocab_size)
    model = Decoder(ModelConfig.from_dict(settings["model"]))
    initialize(model, 0)
    fill_zero_weights(model)
    check_loss(model, random_windows(*CHECKED, options.vocab_size))
    windows = random_windows(*batch_shape(options, settings), options.vocab_size)
    return make_step(
        model, windows, OptimizerConfig(**settings["optimizer"]), micro_batch_size=settings["micro_batch_size"]
    )


if __name__ == "__main__":
    main()
