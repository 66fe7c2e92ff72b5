"""A million tokens: peak memory of reading them, and what opening them again takes. `python benchmarks/million.py`

Peak memory is that of a process of its own (its largest resident set), less what Python with PyTorch takes before the
model is there. It is compared with weights + cache + one chunk, of which the last is measured by reading one first.
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
from goldfinch.benchmark.timing import seconds
from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.inference.prefill import CHUNK


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="goldfinch-L3-D256", help="a preset, or the folder of a model")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--latents", default="bfloat16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ids is not None:
        measure(options)
        return
    # Making random weights and ids takes more memory than reading: this process does that, another one reads.
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
    """Read with the model in a folder, and print."""
    ids = torch.from_numpy(np.load(options.ids))
    before = resident()
    lm = gf.load(options.model)
    weights = sum(parameter.nbytes for parameter in lm.model.parameters())
    for parameter in lm.model.parameters():
        parameter.sum()  # weights are memory-mapped: now they are there
    with_weights = peak()
    lm.read(ids[:CHUNK])
    chunk = peak() - with_weights
    started = time.perf_counter()
    context = lm.context(options.latents, budget=0)
    context.read(ids, name="text")
    reading = time.perf_counter() - started
    cache = sum(context.nbytes.values())
    used = peak() - before
    rows: list[list[object]] = [
        ["reading, tokens/s", options.tokens / reading],
        ["weights, bytes", weights],
        ["key memory, bytes", context.nbytes["memory"]],
        ["key memory, bytes a token", context.nbytes["memory"] / options.tokens],
        ["state, bytes", context.nbytes["state"]],
        [f"snapshots ({len(context.snapshots)}), bytes", context.nbytes["snapshots"]],
        [f"one chunk of {CHUNK:,} tokens, bytes", chunk],
        ["peak of reading, bytes", used],
        ["peak / (weights + cache + chunk)", used / (weights + cache + chunk)],
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.gfc"
        rows.append(["save, s", seconds(lambda: context.save(path))])
        rows.append(["file, bytes", path.stat().st_size])
        rows.append(["open, s", seconds(lambda: lm.open(path))])
        opened = lm.open(path, budget=0)
        rows.append(["all checksums, s", seconds(opened.sequence.key_cache.verify)])
        rows.append(["first logits, all rebuilt, s", seconds(lambda: opened.logits)])
    report(
        f"{options.tokens:,} tokens, {lm.config.num_layers} layers, {lm.config.width} wide",
        ["what", "measured"],
        rows,
        options.json,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
