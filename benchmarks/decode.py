"""Decoding after a text: GoldFinch at its three cache levels, next to a Llama of its size; or several texts at once.

`python benchmarks/decode.py`. Each repeat decodes a few tokens with every model at every length, and copies a large
tensor: a step cannot take less than reading all weights but the embedding takes at that rate. The contexts of the
transformers peer are filled with noise instead of being read; llama.cpp reads, once.

`python benchmarks/decode.py --batch 1 4 16` compares 4 and 16 contexts that step together with one alone, at the level
keys_values: with greedy steps of the model alone, and as generation with temperature 0.8 and top-p 0.9. No speed is
printed before each of several has the logits that it has alone.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from common import arguments, moby_dick, plot, report, spread, times_faster_than_best, versions
from llama import Shape
from peers import GoldFinch, add_arguments, peers

from goldfinch.benchmark.speed import at_level, compare, copy_probe, decode_seconds, levels, tolerance
from goldfinch.benchmark.timing import interleave, seconds
from goldfinch.inference.batch import Batch, decode_together
from goldfinch.inference.context import Context
from goldfinch.inference.sampling import Sampling

NOTHING_SHARED = "GoldFinch, latents, no distinct bigrams, no table"


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=5)
    add_arguments(parser, max_peer_tokens=16384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 16384, 65536])
    parser.add_argument("--tokens", type=int, default=4, help="decoded per repeat")
    parser.add_argument("--without-slowest", action="store_true", help=f"leave out '{NOTHING_SHARED}'")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="compare N contexts together with one alone")
    options = parser.parse_args()
    if options.batch:
        compare_batch(options)
    else:
        compare_levels(options)


def compare_batch(options: argparse.Namespace) -> None:
    """Tokens per second of one context and of several that step together."""
    sizes = sorted({1, *options.batch})
    if sizes[0] < 1:
        raise SystemExit("--batch: at least 1 context")
    lm = GoldFinch(options.preset, options.dtype).lm
    rows, lines, difference = [], dict[str, dict[int, list[float]]](), 0.0
    ids = moby_dick(max(options.lengths))
    for length in sorted(options.lengths):
        context = at_level(lm.read(ids[:length]), "keys_values")
        cases: dict[tuple[str, int], Callable[[], float]] = {}
        for size in sizes:
            difference = max(difference, check_batch(context, size))
            cases["step", size] = partial(step_seconds, [context.fork() for _ in range(size)], options.tokens)
            cases["generate", size] = partial(generate_seconds, [context.fork() for _ in range(size)], options.tokens)
        timings = interleave(cases, options.repeats)
        for what, size in ((what, size) for what in ("step", "generate") for size in sizes):
            rates = [options.tokens * size / taken for taken in timings[what, size].seconds]
            lines.setdefault(f"{what}, {length:,} tokens", {})[size] = rates
            times = None if size == 1 else size * timings[what, size].times_faster(timings[what, 1])
            rows.append([length, what, size, spread(rates), times])
    columns = ["tokens", "what", "contexts", "tokens/s of all: median (min - max)", "times one alone"]
    title = f"batched decode of {options.preset}, {options.dtype}"
    facts = {"repeats": options.repeats, "max_difference_from_one_alone": f"{difference:.1e}"}
    report(title, columns, rows, options.json, **versions(), **facts)
    if options.png is not None:
        plot(options.png, title, ("contexts", "tokens/s of all"), lines)


def check_batch(context: Context, size: int) -> float:
    """Check that contexts that step together get the logits that each gets alone; returns the maximum difference.

    Raises:
        RuntimeError: they do not.
    """
    forks = [context.fork() for _ in range(size)]
    for row, fork in enumerate(forks):
        fork.read([row])  # so that no two are the same
    alone = [fork.fork() for fork in forks]
    ids = torch.arange(size) + 1
    together = decode_together([fork.sequence for fork in forks], ids)
    allowed = tolerance(context.model.dtype)
    return max(
        compare(one.read([int(token)]).logits, {f"{size} together": logits}, allowed)
        for one, token, logits in zip(alone, ids, together, strict=True)
    )


def step_seconds(contexts: list[Context], tokens: int) -> float:
    """Seconds of some greedy steps."""
    sequences = [context.sequence for context in contexts]
    next_ids = torch.stack([context.logits for context in contexts]).argmax(-1)

    def steps() -> None:
        ids = next_ids
        for _ in range(tokens):
            ids = decode_together(sequences, ids).argmax(-1)

    return seconds(steps)


def generate_seconds(contexts: list[Context], tokens: int) -> float:
    """Seconds of generating, after the first token."""
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=0, ignore_eos=True)
    batch = Batch()
    for row, context in enumerate(contexts):
        batch.add(context.generation_state(sampling.with_row_seed(row), tokens + 2))

    def steps() -> None:
        for _ in range(tokens):
            batch.step()

    return seconds(steps)


def compare_levels(options: argparse.Namespace) -> None:
    """Milliseconds of a step at each cache level and length, next to the peers."""
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
        if ours.lm.config.num_gold_layers and not options.without_slowest:
            contexts[length, NOTHING_SHARED] = at_level(reading, "latents", table_bytes=0)
    with peers(options.peers, Shape.of(options.preset, options.dtype)) as others:
        cases: dict[Any, Callable[[], float]] = {"copy": copy.measure}
        for length in lengths:
            for case, context in contexts.items():
                if case[0] == length:
                    write = write_sharing_nothing if case[1] == NOTHING_SHARED else decode_seconds
                    cases[case] = partial(write, context, options.tokens)
            if length <= options.max_peer_tokens:
                cases |= {(length, name): peer.decoder(ids[:length], options.tokens) for name, peer in others.items()}
        taken = interleave(cases, options.repeats)
        weight_bytes = {name: peer.weight_bytes for name, peer in others.items()}
        del cases["copy"]
    rows, lines = [], dict[str, dict[int, list[float]]]()
    for length, name in cases:
        samples = taken[length, name]
        milliseconds = [1e3 * seconds for seconds in samples.seconds]
        lines.setdefault(name, {})[length] = milliseconds
        times = stored = kept = share = None
        if name not in others:
            times = times_faster_than_best(
                samples, (taken[length, other] for other in others if (length, other) in taken)
            )
            usage = contexts[length, name].memory_usage()
            stored, kept = usage.key_cache, usage.key_value_cache
        if length == lengths[0]:
            share = copy.share(weight_bytes.get(name, ours.weight_bytes), samples, taken["copy"])
        rows.append([length, name, spread(milliseconds), times, share, stored, kept])
    columns = [
        "tokens",
        "model",
        "ms per token: median (min - max)",
        "times the better peer",
        "fraction of the minimum step time",
        "key cache, bytes",
        "key-value cache, bytes",
    ]
    title = f"decode of {options.preset}, {options.dtype}"
    bandwidth = copy.rate(taken["copy"])
    report(
        title,
        columns,
        rows,
        options.json,
        **versions(),
        repeats=options.repeats,
        copy_bytes_per_second=f"{bandwidth:.4g}",
        weight_bytes=" | ".join(
            f"{name} {size:,}" for name, size in {"GoldFinch": ours.weight_bytes, **weight_bytes}.items()
        ),
        minimum_step_of_goldfinch_ms=f"{1e3 * ours.weight_bytes / bandwidth:.4g}",
        max_difference_from_the_whole_forward=f"{difference:.1e}",
    )
    if options.png is not None:
        plot(options.png, title, ("tokens before", "ms a token"), lines)


def write_sharing_nothing(context: Context, tokens: int) -> float:
    """Seconds of a token when the keys and values of every token are computed, however often it occurs."""
    each_by_itself = partial(mock.patch, "goldfinch.cache.key_value_cache._distinct")
    with each_by_itself(lambda ids: (ids, torch.arange(len(ids)))):
        return decode_seconds(context, tokens)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
