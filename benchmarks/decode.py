"""Writing tokens after a text: GoldFinch at its three levels of what is kept rebuilt, beside a Llama of its size.

`python benchmarks/decode.py`. Each round writes a few tokens with every model at every length, and copies a large
tensor: a step cannot take less than reading all weights but the embedding takes at that rate. The contexts of the
transformers peer are filled with noise instead of being read; llama.cpp reads, once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from common import arguments, moby_dick, plot, report, spread, times_faster_than_best, versions
from llama import Shape
from peers import GoldFinch, add_arguments, peers

from goldfinch.benchmark.speed import at_level, copy_probe, levels, write_seconds
from goldfinch.benchmark.timing import interleave
from goldfinch.inference.context import Context

ANEW = "GoldFinch, compressed, no bigrams, no table"


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=5)
    add_arguments(parser, longest=16384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 16384, 65536])
    parser.add_argument("--tokens", type=int, default=4, help="written per round")
    parser.add_argument("--without-anew", action="store_true", help=f"leave out '{ANEW}', which takes long")
    options = parser.parse_args()

    ours = GoldFinch(options.preset, options.dtype)
    difference = ours.check()
    copy = copy_probe()
    lengths = sorted(options.lengths)
    ids = moby_dick(lengths[-1])
    contexts: dict[tuple[int, str], Context] = {}
    reading = ours.lm.context("bfloat16", budget=0)
    for length in lengths:
        reading.read(ids[len(reading) : length])
        for level in levels(ours.lm):
            contexts[length, f"GoldFinch, {level}" if level else "GoldFinch"] = at_level(reading, level)
        if ours.lm.config.num_gold_layers and not options.without_anew:
            contexts[length, ANEW] = at_level(reading, "latents", id_table=0)
    with peers(options.peers, Shape.of(options.preset, options.dtype)) as others:
        cases: dict[Any, Callable[[], float]] = {"copy": copy.measure}
        for length in lengths:
            for case, context in contexts.items():
                if case[0] == length:
                    write = write_anew if case[1] == ANEW else write_seconds
                    cases[case] = partial(write, context, options.tokens)
            if length <= options.longest_peer:
                cases |= {(length, name): peer.writer(ids[:length], options.tokens) for name, peer in others.items()}
        taken = interleave(cases, options.rounds)
        weight_bytes = {name: peer.weight_bytes for name, peer in others.items()}
        del cases["copy"]
    rows, lines = [], dict[str, dict[int, list[float]]]()
    for length, name in cases:
        samples = taken[length, name]
        milliseconds = [1e3 * seconds for seconds in samples.seconds]
        lines.setdefault(name, {})[length] = milliseconds
        ratio = memory = kept = share = None
        if name not in others:
            ratio = times_faster_than_best(
                samples, (taken[length, other] for other in others if (length, other) in taken)
            )
            nbytes = contexts[length, name].nbytes
            memory, kept = nbytes["memory"], nbytes["expanded"]
        if length == lengths[0]:
            share = copy.share(weight_bytes.get(name, ours.weight_bytes), samples, taken["copy"])
        rows.append([length, name, spread(milliseconds), ratio, share, memory, kept])
    columns = [
        "tokens",
        "model",
        "ms a token: median (lowest - highest)",
        "times the better peer",
        "share of the shortest step",
        "memory, bytes",
        "kept rebuilt, bytes",
    ]
    title = f"decode of {options.preset}, {options.dtype}"
    bandwidth = copy.rate(taken["copy"])
    report(
        title,
        columns,
        rows,
        options.json,
        **versions(),
        rounds=options.rounds,
        copy_bytes_per_second=f"{bandwidth:.4g}",
        weight_bytes=" | ".join(
            f"{name} {size:,}" for name, size in {"GoldFinch": ours.weight_bytes, **weight_bytes}.items()
        ),
        shortest_step_of_goldfinch_ms=f"{1e3 * ours.weight_bytes / bandwidth:.4g}",
        largest_difference_from_the_whole_forward=f"{difference:.1e}",
    )
    if options.png is not None:
        plot(options.png, title, ("tokens before", "ms a token"), lines)


def write_anew(context: Context, tokens: int) -> float:
    """Seconds of a token when keys and values are worked out for each token anew, however often it stands there."""
    each_by_itself = partial(mock.patch, "goldfinch.cache.key_value_cache._distinct")
    with each_by_itself(lambda ids: (ids, torch.arange(len(ids)))):
        return write_seconds(context, tokens)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
