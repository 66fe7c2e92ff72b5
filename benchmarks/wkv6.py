"""WKV6: C++ next to the chunked PyTorch form, in one run. `python benchmarks/wkv6.py`

Times are per token and head. No time is printed before outputs and gradients agree.
"""

from functools import partial

import torch
from common import arguments, plot, report, spread
from torch import Tensor

from goldfinch.benchmark.timing import Timings, interleave, seconds
from goldfinch.ops.wkv6 import wkv6

NAMES = ("cpu", "chunked")
TOLERANCE = 1e-4  # relative to the largest number


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=15)
    parser.add_argument("--shapes", nargs="+", default=["1x1024x4", "4x512x12", "1x4096x12", "1x1x12"], help="BxTxH")
    options = parser.parse_args()

    rows, lines = [], dict[str, dict[str, list[float]]]()
    for shape in options.shapes:
        batch, length, heads = map(int, shape.split("x"))
        inputs = make_inputs(batch, length, heads)
        check(inputs)
        for what, run in (("forward", forward), ("forward + backward", both)):
            taken = interleave({name: partial(seconds, partial(run, inputs, name)) for name in NAMES}, options.repeats)
            cpu, chunked = (micro(taken[name], batch * length * heads) for name in NAMES)
            rows.append([shape, what, spread(cpu), spread(chunked), taken["cpu"].times_faster(taken["chunked"])])
            for name, values in zip(NAMES, (cpu, chunked), strict=True):
                lines.setdefault(f"{name}, {what}", {})[shape] = values
    columns = ["B x T x H", "what", "cpu, us", "chunked, us", "times faster"]
    title = "WKV6, heads of 64, fp32, us per token and head"
    report(title, columns, rows, options.json, repeats=options.repeats)
    if options.png is not None:
        plot(options.png, title, ("B x T x H", "us per token and head"), lines, tick=str)


def micro(samples: Timings, count: int) -> list[float]:
    """Microseconds for each of `count`."""
    return [one / count * 1e6 for one in samples.seconds]


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
    """Check that outputs, states and gradients of both agree.

    Raises:
        RuntimeError: they disagree.
    """
    for one, other in zip(both(inputs, "cpu"), both(inputs, "chunked"), strict=True):
        difference = float(((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).detach())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"cpu and chunked disagree by {difference:.1e}; no speed is shown")


if __name__ == "__main__":
    main()
