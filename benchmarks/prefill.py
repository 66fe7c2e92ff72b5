"""Prefill of a prompt, with the logits after it: GoldFinch next to a Llama of its size. `python benchmarks/prefill.py`

Each repeat reads prompts of all lengths with all models, and multiplies matrices of GoldFinch's shapes. The share of
the speed of matrix products counts only the products below GOLD, which every token goes through. `--same-tokens` shows
whether a token costs the same at any length: short prompts are read repeatedly, from all over the text, until as many
tokens are read as the longest prompt has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import arguments, moby_dick, plot, report, spread, times_faster_than_best, versions
from llama import Shape
from peers import GoldFinch, Peer, add_arguments, peers
from torch import Tensor

from goldfinch.benchmark.speed import prefill_product_flops, product_probe
from goldfinch.benchmark.timing import interleave


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=5)
    add_arguments(parser, max_peer_tokens=16384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--patience", type=float, default=30, help="seconds; slower cases are measured once")
    parser.add_argument("--same-tokens", action="store_true", help="read the same number of tokens at every length")
    options = parser.parse_args()

    ours = GoldFinch(options.preset, options.dtype)
    difference = ours.check()
    config = ours.lm.config
    products = product_probe(config.width, config.channel_mix_width, ours.lm.model.dtype)
    lengths = sorted(options.lengths)
    ids = moby_dick(lengths[-1])
    with peers(options.peers, Shape.of(options.preset, options.dtype)) as others:
        cases: dict[Any, Callable[[], float]] = {"products": products.measure}
        tokens: dict[int, int] = {}
        for length in lengths:
            count = lengths[-1] // length if options.same_tokens else 1
            tokens[length] = count * length
            texts = ids[: tokens[length]].split(length)
            cases[length, "GoldFinch"] = partial(read_all, ours, texts)
            if length <= options.max_peer_tokens:
                cases |= {(length, name): partial(read_all, peer, texts) for name, peer in others.items()}
        taken = interleave(cases, options.repeats, options.patience)
    del cases["products"]
    rows, lines = [], dict[str, dict[int, list[float]]]()
    for length, name in cases:
        samples, count = taken[length, name], tokens[length]
        rates = [count / seconds for seconds in samples.seconds]
        lines.setdefault(name, {})[length] = rates
        # Cost of a token relative to the shortest prompt.
        relative = taken[lengths[0], name].times_faster(samples) * tokens[lengths[0]] / count
        ratio = share = None
        if name == "GoldFinch":
            ratio = times_faster_than_best(
                samples, (taken[length, other] for other in others if (length, other) in taken)
            )
            share = products.share(prefill_product_flops(config) * count, samples, taken["products"])
        rows.append([length, name, spread(rates), 1e6 * samples.median / count, relative, ratio, share])
    columns = [
        "tokens",
        "model",
        "tokens/s: median (min - max)",
        "us per token",
        f"relative to {lengths[0]:,}",
        "times the better peer",
        "share of matrix products",
    ]
    title = f"prefill of {options.preset}, {options.dtype}"
    report(
        title,
        columns,
        rows,
        options.json,
        **versions(),
        repeats=options.repeats,
        matrix_product_flops_per_second=f"{products.rate(taken['products']):.4g}",
        max_difference_from_the_whole_forward=f"{difference:.1e}",
    )
    if options.png is not None:
        plot(options.png, title, ("tokens in the prompt", "tokens/s"), lines)


def read_all(model: GoldFinch | Peer, texts: tuple[Tensor, ...]) -> float:
    """Seconds for the prefill of each text."""
    return sum(model.prefill_seconds(text) for text in texts)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
