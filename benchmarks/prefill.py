"""Does reading a token cost the same at any length? `python benchmarks/prefill.py`

Each round reads prompts of all lengths, several short ones for each long one, so that what else the machine does falls
on all of them alike. A reading ends with the logits after it: the GOLD layers and the head are in the time.
"""

import argparse
import statistics
import time

import torch
from common import moby_dick, report, spread

import goldfinch as gf


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="goldfinch-L6-D256")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 65536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    lm = gf.build(options.preset, options.dtype)
    longest = max(options.lengths)
    ids = moby_dick(longest)
    lm.read(ids[: min(options.lengths)])
    times: dict[int, list[float]] = {length: [] for length in options.lengths}
    for _ in range(options.rounds):
        for length in options.lengths:
            # As many tokens of each length, from all over the text.
            started = time.perf_counter()
            for start in range(0, longest // length * length, length):
                assert lm.read(ids[start : start + length]).logits.isfinite().all()
            times[length].append((time.perf_counter() - started) / (longest // length * length) * 1e6)
    first = times[options.lengths[0]]
    rows = []
    for length, per_token in times.items():
        ratios = [one / other for one, other in zip(per_token, first, strict=True)]
        rows.append([length, spread(per_token), statistics.median(ratios)])
    columns = ["tokens", "us a token: median (lowest - highest)", f"against {options.lengths[0]:,}: median of rounds"]
    report(f"pre-fill of {options.preset}, {options.dtype}", columns, rows, options.json, rounds=options.rounds)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
