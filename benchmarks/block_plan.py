"""Training steps: eager, with activation checkpointing, with compiled blocks. `python benchmarks/block_plan.py`

No speed is printed unless all have the same loss. Compiled code is cached between runs;
TORCHINDUCTOR_CACHE_DIR=(an empty folder) shows the cost of the first one.
"""

import argparse
import statistics
import time

import torch
from common import report, spread
from steps import check_same_loss, make_step, random_windows
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.presets import model_config
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.parallel.parallelize import apply_block_plan

PLANS = {
    "eager": {},
    "checkpointing": {"activation_checkpointing": True},
    "compiled": {"compiled": True},
}
TOLERANCE, BF16_TOLERANCE = 1e-4, 1e-2  # relative, of the losses: compiled blocks round otherwise


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="goldfinch-L6-D256")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS), help="eager is always measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    windows = random_windows(args.batch_size, args.sequence_length, args.vocab_size)
    plans = {"eager", *args.plans}
    models = {name: _model(args.preset, args.vocab_size, plan) for name, plan in PLANS.items() if name in plans}
    steps = {name: make_step(model, windows, OptimizerConfig(), bf16=args.bf16) for name, model in models.items()}
    kept = {}
    first = {}
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        first[name] = time.perf_counter() - started
        kept[name] = _saved_bytes(models[name], windows, args.bf16)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    # Last, and with the same shapes, so that nothing is compiled for the check before the steps are measured.
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        check_same_loss(models, windows, BF16_TOLERANCE if args.bf16 else TOLERANCE)
    tokens = windows[:, 1:].numel()
    rows = [
        (
            name,
            spread([tokens / value for value in seconds[name]]),
            spread([eager / value for eager, value in zip(seconds["eager"], seconds[name], strict=True)]),
            f"{first[name] - statistics.median(seconds[name]):.1f}",
            f"{kept[name] / 2**20:.1f}",
        )
        for name in steps
    ]
    columns = ("blocks", "tokens/s", "times eager", "extra in the first step, s", "saved for the backward pass, MiB")
    title = f"{args.preset}, {args.batch_size} x {args.sequence_length} tokens, {'bf16' if args.bf16 else 'fp32'}"
    report(title, columns, rows, args.json)


def _model(preset: str, vocab_size: int, plan: dict[str, bool]) -> Decoder:
    model = Decoder(model_config(preset, vocab_size))
    apply_block_plan(model, **plan)
    return model


def _saved_bytes(model: Decoder, windows: Tensor, bf16: bool) -> int:
    """Bytes that a forward pass below the head saves, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # kept alive, so that its address is not reused
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.hidden(windows[:, :-1])
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    main()
