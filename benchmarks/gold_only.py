"""Training steps of all weights, and of the GOLD layers and the head only. `python benchmarks/gold_only.py`

Steps are interleaved in one process; peak memory is measured in a process per case: peak resident set, less what Python
with PyTorch takes before the model is built.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from common import arguments, peak, plot, report, resident, spread
from steps import check_loss, make_step, random_windows

from goldfinch.benchmark.speed import fill_zero_weights
from goldfinch.benchmark.timing import interleave, seconds
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import model_config
from goldfinch.training.config import OptimizerConfig, gold_only
from goldfinch.training.parallel.parallelize import apply_block_plan

CASES = {"everything": False, "GOLD layers and head": True}
CHECKED = (2, 32)  # sequences and tokens whose losses are compared
PEAK_STEPS = 2  # the optimizer state exists after the first


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("preset", nargs="?", default="goldfinch-L6-D256")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--only", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only is not None:
        print(json.dumps(peak_of_steps(options)))
        return
    check_loss(build(options), random_windows(*CHECKED, options.vocab_size))
    peaks = {name: peak_in_new_process(name) for name in CASES}
    taken = interleave({name: partial(seconds, case_step(options, name)) for name in CASES}, options.repeats)
    whole, tokens = taken["everything"], options.batch_size * options.sequence_length
    rows = [
        [
            name,
            spread([tokens / one for one in samples.seconds]),
            spread([all_ / one for all_, one in zip(whole.seconds, samples.seconds, strict=True)]),
            f"{peaks[name] / 2**20:.0f}",
            f"{peaks['everything'] / peaks[name]:.2f}",
        ]
        for name, samples in taken.items()
    ]
    columns = ["trained", "tokens/s", "times as fast", "peak memory, MiB", "times less memory"]
    plan = ", activation checkpointing" if options.activation_checkpointing else ""
    title = f"{options.preset}, {options.batch_size} x {options.sequence_length} tokens, fp32{plan}"
    if options.png:
        speeds = {name: [tokens / one for one in samples.seconds] for name, samples in taken.items()}
        plot(options.png, title, ("", "tokens/s"), {"training": speeds}, tick=str)
    report(title, columns, rows, options.json)


def case_step(options: argparse.Namespace, name: str) -> Callable[[], None]:
    """A training step of one case."""
    model = build(options)
    windows = random_windows(options.batch_size, options.sequence_length, options.vocab_size)
    multipliers = gold_only(model.config) if CASES[name] else ()
    return make_step(model, windows, OptimizerConfig(learning_rate_multipliers=multipliers))


def build(options: argparse.Namespace) -> Decoder:
    """The model, with no zero weights."""
    model = Decoder(model_config(options.preset, options.vocab_size))
    apply_block_plan(model, activation_checkpointing=options.activation_checkpointing)
    initialize(model, 0)
    fill_zero_weights(model)
    return model


def peak_in_new_process(name: str) -> int:
    """Bytes."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_steps(options: argparse.Namespace) -> int:
    """Peak bytes of a few steps in this process."""
    before = resident()
    step = case_step(options, options.only)
    for _ in range(PEAK_STEPS):
        step()
    return peak() - before


if __name__ == "__main__":
    main()
