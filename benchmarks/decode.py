"""What keeping rebuilt keys and values buys: time of a written token at the three levels. `python benchmarks/decode.py`

Each round writes a few tokens at every level and length, so that what else the machine does falls on all alike.
"""

import argparse
import time
from typing import get_args

import torch
from common import moby_dick, report, spread

import goldfinch as gf
from goldfinch.inference.context import Context
from goldfinch.memory.expansion import Level

ID_TABLE = 512 << 20  # bytes for the table of ids, on top of what a level keeps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="goldfinch-L6-D256")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 65536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4, help="written per round")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    lm = gf.build(options.preset, options.dtype)
    ids = moby_dick(max(options.lengths))
    cases: dict[tuple[int, Level], tuple[Context, list[float]]] = {}
    for length in options.lengths:
        context = lm.read(ids[:length], latents="bfloat16")
        for level in get_args(Level):
            cases[length, level] = at_level(context, level, length), []
    for _ in range(options.rounds + 1):
        for context, times in cases.values():
            started = time.perf_counter()
            for token in range(options.tokens):
                context.read([token])
                assert context.logits.isfinite().all()
            times.append((time.perf_counter() - started) / options.tokens * 1e3)
    rows = [
        [length, level, spread(times[1:]), context.nbytes["memory"], context.nbytes["expanded"]]
        for (length, level), (context, times) in cases.items()
    ]
    columns = ["tokens", "level", "ms a token: median (lowest - highest)", "memory, bytes", "kept rebuilt, bytes"]
    report(f"decode of {options.preset}, {options.dtype}", columns, rows, options.json, rounds=options.rounds)


def at_level(context: Context, level: Level, length: int) -> Context:
    """A fork that keeps just this level, and the id table besides."""
    fork = context.fork()
    expansion = fork.sequence.expansion
    assert expansion is not None
    expansion.budget = expansion.bytes_at(level, length + length // 4)
    if level == "compressed":
        expansion.budget = min(ID_TABLE, expansion.bytes_at("shared keys", length) - 1)
    assert expansion.level == level
    assert fork.logits.isfinite().all()
    return fork


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
