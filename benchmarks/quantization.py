"""Quantization error of the latents of a trained model: `python benchmarks/quantization.py runs/quickstart book.txt`

Next-token predictions from stored latents are compared with those from exact ones, at evenly spaced positions.
"""

import argparse
from pathlib import Path

from common import report

import goldfinch as gf
from goldfinch.inference.context_file.quantization import QuantizationProbe


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=65536, help="maximum, from the start of the text")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    lm = gf.load(options.model, options.dtype)
    ids = lm.encode(options.text.read_text(encoding="utf-8"))[: options.tokens]
    rows = []
    for latents in ("bfloat16", "int8", "int4"):
        context = lm.context(latents, budget=0)
        context.sequence.probe = QuantizationProbe(lm.model, options.samples)
        context.read(ids)
        measured = context.measure_quantization()
        if measured is None:
            raise SystemExit(f"{options.text} is too short: there is no position to compare predictions at")
        per_token = context.memory_usage().key_cache / len(context)
        rows.append([latents, per_token, measured.mean_kl, measured.max_kl, f"{measured.top1_agreement:.1%}"])
    columns = ["latents", "bytes per token", "mean KL, nats", "max KL, nats", "same top-1 token"]
    report(
        f"quantization, {options.model.name}",
        columns,
        rows,
        options.json,
        dtype=options.dtype,
        tokens=len(ids),
        positions=measured.num_positions,
    )


if __name__ == "__main__":
    main()
