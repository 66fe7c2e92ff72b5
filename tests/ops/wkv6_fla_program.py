"""The real kernels of flash-linear-attention, through our adapter, in Triton's interpreter on a CPU. Prints JSON.

    TRITON_INTERPRET=1 python tests/ops/wkv6_fla_program.py

Two things the interpreter cannot do are done here for it; the kernels and our adapter are left as they are.
"""

import json
import os
import sys
import warnings
from builtins import range as plain_range

assert os.environ.get("TRITON_INTERPRET") == "1", "set it before Python document_starts"
os.environ["FLA_CACHE_RESULTS"] = "0"  # the cache of tuning results asks for a GPU
warnings.simplefilter("ignore")  # fla misses a GPU, and NumPy tells of the overflows that are masked away

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fla.ops import rwkv6  # noqa: E402
from test_wkv6 import definition, inputs, run_with_gradients  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402

from goldfinch.ops.wkv6 import fla, wkv6  # noqa: E402

np.seterr(all="ignore")
# Tuning measures on a GPU: with equal times for all, the first configuration is taken.
Autotuner._bench = lambda self, *args, config, **kwargs: [0.0, 0.0, 0.0]


class LoopIndex(int):
    """Compiled kernels count in tensors, which have `to`; the interpreter counts in numbers."""

    def to(self, _dtype):
        return self


for module in ("fla.ops.common.chunk_h", "fla.ops.rwkv6.chunk"):
    vars(sys.modules[module])["range"] = lambda *args: map(LoopIndex, plain_range(*args))

SIZE = 16
EXTREMES = torch.tensor([-torch.inf, -1e4, -100.0, -20.0, -1.0, -1e-8, 0.0], dtype=torch.float64)


def differences(actual, expected):
    """Largest difference of each, relative to the largest entry."""
    return {
        name: ((actual[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()
        for name, wanted in expected.items()
    }


def made(length, decays, **with_what):
    """fp32 inputs with log w down to about -30 ("any"), between -1 and 0 ("slow") or from 0 to -inf ("extreme")."""
    values = inputs(length, torch.float32, size=SIZE, **with_what)
    if decays == "slow":
        values["log_w"] = values["log_w"].clamp(min=-1.0) * 0.2
    elif decays == "extreme":
        chosen = torch.randint(len(EXTREMES), values["log_w"].shape, generator=torch.Generator().manual_seed(1))
        values["log_w"] = EXTREMES[chosen].float()
    return values


def wide(values):
    return {name: None if value is None else value.double() for name, value in values.items()}


def run(**values):
    return wkv6(**values, implementation="fla")


def outputs(function, values):
    y, state = function(**values)
    return {"y": y.detach().double(), "final state": state.detach().double()}


def both(function, values):
    """`function` and the definition on the same values, gradients included."""
    return differences(run_with_gradients(function, values), run_with_gradients(definition, wide(values)))


exact = {}
for length in (1, 5, 70):
    for decays in ("slow", "any", "extreme"):
        values = made(length, decays)
        forward = differences(outputs(run, values), outputs(definition, wide(values)))
        exact[f"{length} tokens, {decays} decays, forward"] = forward
for length, decays in ((1, "any"), (5, "any"), (70, "slow"), (70, "any")):
    exact[f"{length} tokens, {decays} decays, gradients"] = both(run, made(length, decays))
values = made(70, "any", with_u=False, with_state=False)
exact["70 tokens, any decays, no u and no state, gradients"] = both(run, values)

bounds = {}
values, chosen = made(70, "extreme"), fla.SMALLEST_LOG_DECAY
for bound in (-88.0, -20.0, -12.0):
    fla.SMALLEST_LOG_DECAY = bound
    bounds[bound] = both(run, values)
fla.SMALLEST_LOG_DECAY = chosen
exact["70 tokens, extreme decays, gradients"] = bounds[chosen]


def fused(r, k, v, log_w, u, state):
    return rwkv6.fused_recurrent_rwkv6(r, k, v, log_w, u, scale=1.0, initial_state=state, output_final_state=True)


def chunk(r, k, v, log_w, u, state):
    return rwkv6.chunk_rwkv6(r, k, v, log_w, u, scale=1.0, initial_state=state, output_final_state=True)


faults = {
    "fused: gradient of the state after, lost": both(fused, made(5, "any"))["v"],
    "chunk: y where log w = -inf": outputs(chunk, made(5, "extreme"))["y"].abs().max().item(),
}

# The interpreter multiplies bf16 matrices by their bits, as whole numbers (a kernel of one `tl.dot` shows it), so bf16
# goes step by step only.
low = {}
for length, dtype in ((5, torch.bfloat16), (5, torch.float16), (70, torch.float16)):
    values = {name: x.to(dtype) if name in ("r", "k", "v") else x for name, x in made(length, "slow").items()}
    expected = outputs(definition, wide(values))
    low[f"{length} tokens, {dtype}"] = differences(outputs(fla.wkv6_fla, values), expected)
print(json.dumps({"exact": exact, "bounds": bounds, "faults": faults, "low": low}, indent=1))
