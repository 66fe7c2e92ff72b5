"""A million tokens: peak memory of prefill, and the time to save and open the context. `python benchmarks/million.py`

Peak memory is that of a separate process (peak resident set), less what Python with PyTorch takes before the model is
loaded. It is compared with weights + cache + one chunk; the last is measured by reading one chunk first. Nothing is
printed unless the opened context has the logits of the one that was saved.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import moby_dick, peak, report, resident

import goldfinch as gf
from goldfinch.benchmark.speed import compare, tolerance
from goldfinch.benchmark.timing import seconds
from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.inference.prefill import CHUNK_SIZE


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="goldfinch-L3-D256", help="a preset, or a model folder")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--latents", default="bfloat16")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ids is not None:
        measure(options)
        return
    # Creating random weights and ids takes more memory than prefill, so another process does the prefill.
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, moby_dick(options.tokens).numpy())
        if not Path(options.model).is_dir():
            lm = gf.build(options.model, options.dtype)
            save_description(Path(folder), lm.config, lm.tokenizer)
            save_weights(Path(folder), lm.model.state_dict())
        arguments = [folder if argument == options.model else argument for argument in sys.argv[1:]]
        model = [] if folder in arguments or Path(options.model).is_dir() else [folder]
        subprocess.run([sys.executable, __file__, *model, *arguments, "--ids", ids], check=True)


def measure(options: argparse.Namespace) -> None:
    """Measure with the model in a folder, and print."""
    ids = torch.from_numpy(np.load(options.ids))
    before = resident()
    lm = gf.load(options.model, options.dtype)
    weights = sum(parameter.nbytes for parameter in lm.model.parameters())
    for parameter in lm.model.parameters():
        parameter.sum()  # weights are memory-mapped: load them
    with_weights = peak()
    lm.read(ids[:CHUNK_SIZE])
    chunk = peak() - with_weights
    started = time.perf_counter()
    context = lm.context(options.latents, budget=0)
    context.read(ids, name="text")
    reading = time.perf_counter() - started
    usage = context.memory_usage()
    used = peak() - before
    rows: list[list[object]] = [
        ["prefill, tokens/s", options.tokens / reading],
        ["weights, bytes", weights],
        ["key cache, bytes", usage.key_cache],
        ["key cache, bytes per token", usage.key_cache / options.tokens],
        ["state, bytes", usage.state],
        [f"snapshots ({len(context.snapshots)}), bytes", usage.snapshots],
        [f"one chunk of {CHUNK_SIZE:,} tokens, bytes", chunk],
        ["peak of prefill, bytes", used],
        ["peak / (weights + cache + chunk)", used / (weights + usage.total + chunk)],
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.gfc"
        rows.append(["save, s", seconds(lambda: context.save(path))])
        rows.append(["file, bytes", path.stat().st_size])
        rows.append(["open, s", seconds(lambda: lm.open(path))])
        opened = lm.open(path, budget=0)
        rows.append(["all checksums, s", seconds(opened.sequence.key_cache.verify)])
        rows.append(["first logits, everything rebuilt, s", seconds(lambda: opened.logits)])
        compare(context.logits, {"the opened context": opened.logits}, tolerance(lm.model.dtype))
    report(
        f"{options.tokens:,} tokens, {lm.config.num_layers} layers, width {lm.config.width}",
        ["what", "measured"],
        rows,
        options.json,
        dtype=options.dtype,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
