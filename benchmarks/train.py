"""Training steps: GoldFinch next to transformers' Llama of its size. `python benchmarks/train.py`

A step is forward, backward and AdamW. Speeds are interleaved in one process; peak memory is measured in a process per
case: peak resident set, less what Python with PyTorch takes before the model is built.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import arguments, moby_dick, peak, plot, report, resident, spread, times_faster_than_best, versions
from llama import Shape, Transformers
from peers import GoldFinch, add_arguments, installed
from steps import check_loss
from torch import Tensor

from goldfinch.benchmark.speed import product_probe, training_product_flops
from goldfinch.benchmark.timing import interleave, seconds
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer

CHECKED = "2x32"  # the batch whose losses are compared
PEAK_STEPS = 2  # the optimizer state exists after the first


class Trainer:
    """A model and its optimizer."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor]):
        self.model, self.optimizer, self.loss = model.train(), optimizer, loss

    def step(self, windows: Tensor, autocast: bool) -> None:
        """One step on (B, T + 1) ids."""
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = self.loss(windows)
        loss.backward()
        if not loss.isfinite():
            raise RuntimeError("the loss is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=5)
    add_arguments(parser)
    parser.set_defaults(peers=["transformers"])
    parser.add_argument("--shapes", nargs="+", default=["4x512", "1x4096"], help="BxT: sequences x tokens")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(peak_of_steps(options)))
        return

    batches = {shape: make_batch(shape) for shape in options.shapes}
    names = models(options)
    peaks = {(shape, name): peak_in_new_process(options, shape, name) for shape in batches for name in names}
    trainers = {name: make(name, options) for name in names}
    ours = trainers["GoldFinch"].model
    check_loss(ours, make_batch(CHECKED))
    products = product_probe(ours.config.width, ours.config.channel_mix_width, low_dtype(options))
    cases: dict[Any, Callable[[], float]] = {"products": products.measure}
    for shape, windows in batches.items():
        for name, trainer in trainers.items():
            cases[shape, name] = partial(seconds, partial(trainer.step, windows, options.dtype != "float32"))
    taken = interleave(cases, options.repeats)
    del cases["products"]
    rows, lines = [], dict[str, dict[str, list[float]]]()
    for shape, name in cases:
        samples = taken[shape, name]
        batch, length = map(int, shape.split("x"))
        rates = [batch * length / one for one in samples.seconds]
        lines.setdefault(name, {})[shape] = rates
        ratio = share = None
        if name == "GoldFinch":
            ratio = times_faster_than_best(samples, (taken[shape, other] for other in trainers if other != name))
            flops = training_product_flops(ours.config, length) * batch * length
            share = products.share(flops, samples, taken["products"])
        rows.append([shape, name, spread(rates), ratio, share, peaks[shape, name]])
    columns = [
        "B x T",
        "model",
        "tokens/s: median (min - max)",
        "times the peer",
        "share of matrix products",
        "peak memory, bytes",
    ]
    title = f"training steps of {options.preset}, {options.dtype}"
    report(
        title,
        columns,
        rows,
        options.json,
        **versions(("transformers",)),
        repeats=options.repeats,
        matrix_product_flops_per_second=f"{products.rate(taken['products']):.4g}",
    )
    if options.png is not None:
        plot(options.png, title, ("sequences x tokens", "tokens/s"), lines, tick=str)


def models(options: argparse.Namespace) -> list[str]:
    """GoldFinch and the only peer that trains, transformers, if installed."""
    return ["GoldFinch", *(name for name in installed(options.peers) if name == "transformers")]


def make(name: str, options: argparse.Namespace) -> Trainer:
    """A model in fp32; steps run under autocast with another `dtype`."""
    config = OptimizerConfig()
    if name == "GoldFinch":
        model = GoldFinch(options.preset, "float32").lm.model
        return Trainer(
            model,
            build_optimizer(model, config),
            lambda windows: next_token_loss(model, windows, scale=1 / windows[:, 1:].numel()),
        )
    llama = Transformers(Shape.of(options.preset, "float32")).model
    optimizer = torch.optim.AdamW(
        llama.parameters(),
        config.learning_rate,
        (config.beta1, config.beta2),
        config.eps,
        config.weight_decay,
        fused=True,
    )
    # It shifts the labels itself: of T tokens it predicts T - 1.
    return Trainer(
        llama, optimizer, lambda windows: llama(input_ids=windows[:, :-1], labels=windows[:, :-1], use_cache=False).loss
    )


def low_dtype(options: argparse.Namespace) -> torch.dtype:
    """Dtype of matrix products."""
    return getattr(torch, options.dtype)


def make_batch(shape: str) -> Tensor:
    """(B, T + 1) ids."""
    batch, length = map(int, shape.split("x"))
    return moby_dick(batch * (length + 1)).view(batch, length + 1)


def peak_in_new_process(options: argparse.Namespace, shape: str, name: str) -> int:
    """Bytes."""
    command = [sys.executable, __file__, options.preset, "--dtype", options.dtype, "--shapes", shape, "--only", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_steps(options: argparse.Namespace) -> int:
    """Peak bytes of a few steps in this process."""
    if options.only != "GoldFinch":
        import transformers.models.llama.modeling_llama  # noqa: F401, imports are not counted
    before = resident()
    windows = make_batch(options.shapes[0])
    trainer = make(options.only, options)
    for _ in range(PEAK_STEPS):
        trainer.step(windows, options.dtype != "float32")
    return peak() - before


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
