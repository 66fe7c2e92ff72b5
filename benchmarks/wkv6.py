"""WKV6: C++ beside the chunked PyTorch form, in one run. `python benchmarks/wkv6.py`

Times are per token and head. No time is printed before outputs and gradients agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import report, spread
from torch import Tensor

from goldfinch.ops.wkv6 import IMPLEMENTATIONS, wkv6

NAMES = ("native", "chunked")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1x1024x4", "4x512x12", "1x4096x12", "1x1x12"], help="BxTxH")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows = []
    for shape in options.shapes:
        batch, length, heads = map(int, shape.split("x"))
        inputs = make_inputs(batch, length, heads)
        check(inputs)
        for what, run in (("forward", forward), ("forward + backward", both)):
            times: dict[str, list[float]] = {name: [] for name in NAMES}
            for _ in range(options.rounds):
                for name in NAMES:
                    times[name].append(seconds(partial(run, inputs, name)) / (batch * length * heads))
            micro = {name: [one * 1e6 for one in all_] for name, all_ in times.items()}
            ratio = statistics.median(b / a for a, b in zip(micro["native"], micro["chunked"], strict=True))
            rows.append([shape, what, spread(micro["native"]), spread(micro["chunked"]), ratio])
    columns = ["B x T x H", "what", "native, us", "chunked, us", "times faster"]
    report("WKV6, heads of 64, fp32, us per token and head", columns, rows, options.json, rounds=options.rounds)


def make_inputs(batch: int, length: int, heads: int) -> list[Tensor]:
    """r, k, v, log_w that require gradients."""
    torch.manual_seed(0)
    r, k, v = torch.randn(3, batch, length, heads, 64).unbind()
    log_w = -torch.exp(torch.randn(batch, length, heads, 64) * 2 - 2)
    return [x.clone().requires_grad_() for x in (r, k, v, log_w)]


def forward(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Outputs only."""
    with torch.no_grad():
        return list(wkv6(*inputs, implementation=name))


def both(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Outputs and gradients."""
    y, state = wkv6(*inputs, implementation=name)
    return [y, state, *torch.autograd.grad(y.sum() + state.sum(), inputs)]


def check(inputs: list[Tensor]) -> None:
    """Raise where the two disagree."""
    assert set(NAMES) <= set(IMPLEMENTATIONS)
    for one, other in zip(both(inputs, "native"), both(inputs, "chunked"), strict=True):
        difference = (one - other).abs().max() / other.abs().max().clamp(min=1e-30)
        assert difference <= 1e-4, f"native and chunked disagree by {difference:.1e}"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
