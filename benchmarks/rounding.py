"""What rounding the latents changes, for a trained model: `python benchmarks/rounding.py runs/quickstart book.txt`

Next-token predictions from stored latents are compared with those from unrounded ones, at evenly spaced places.
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
    parser.add_argument("--tokens", type=int, default=65536, help="of the text at most")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    lm = gf.load(options.model)
    ids = lm.encode(options.text.read_text(encoding="utf-8"))[: options.tokens]
    rows = []
    for latents in ("bfloat16", "int8", "int4"):
        context = lm.context(latents, budget=0)
        context.sequence.probe = QuantizationProbe(lm.model, options.samples)
        context.read(ids)
        certificate = context.measure_quantization()
        assert certificate is not None
        memory = context.nbytes["memory"] / len(context)
        rows.append([latents, memory, certificate.mean_kl, certificate.max_kl, f"{certificate.top1_agreement:.1%}"])
    columns = ["latents", "bytes a token", "mean KL, nats", "largest KL, nats", "same likeliest token"]
    report(
        f"rounding, {options.model.name}", columns, rows, options.json, tokens=len(ids), places=certificate.positions
    )


if __name__ == "__main__":
    main()
