"""The peers: a Llama of the same depth, width and vocabulary, in transformers and in llama.cpp.

All have one interface, GoldFinch too. `pip install -e '.[bench]'` installs the peers; missing ones are skipped. Both
Llamas have the same weights: heads of 64, RMSNorm, SwiGLU of width floor(8D/3/32)*32, RoPE base 10000, untied head.
"""

import argparse
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from common import moby_dick
from llama import Shape, Transformers
from llama_cpp import LlamaCpp
from torch import Tensor

import goldfinch as gf
from goldfinch.benchmark.speed import check_agreement, fill_zero_weights, prefill_seconds, weight_bytes
from goldfinch.inference.language_model import LanguageModel

INSTALL = "pip install -e '.[bench]'"
NEEDS = {
    "transformers": ("transformers",),
    "llama.cpp": ("transformers", "xllamacpp", "gguf"),
    "llama.cpp-flash": ("transformers", "xllamacpp", "gguf"),
}
"""Peer -> packages. llama.cpp has two attention kernels; which one is faster depends on length and processor."""
CHECKED_TOKENS = 200
# Maximum difference of log-probabilities, nats. llama.cpp stores keys and values in fp16 even with fp32 weights.
TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.3}


class Peer(Protocol):
    """A model for prefill and decode."""

    weight_bytes: int
    """Weights that each decoded token must read."""

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """(T,) ids -> (V,) float32, of the next token."""

    def prefill_seconds(self, ids: Tensor) -> float:
        """Seconds for the prefill of (T,) ids, with the logits after the last."""

    def decoder(self, ids: Tensor, tokens: int) -> Callable[[], float]:
        """A function that decodes `tokens` tokens after (T,) ids and returns the seconds per token."""

    def release(self) -> None:
        """Free everything."""


class GoldFinch:
    """Ours, with no zero weights."""

    def __init__(self, preset: str, dtype: str, seed: int = 0) -> None:
        self.lm: LanguageModel = gf.build(preset, dtype, seed)
        fill_zero_weights(self.lm.model, seed)
        self.weight_bytes = weight_bytes(self.lm.model, self.lm.model.embedding)

    def check(self) -> float:
        """Check prefill and decode against the whole forward; returns the maximum difference."""
        return check_agreement(self.lm, moby_dick(CHECKED_TOKENS))

    def prefill_seconds(self, ids: Tensor) -> float:
        """As `Peer`."""
        return prefill_seconds(self.lm, ids)


def add_arguments(parser: argparse.ArgumentParser, max_peer_tokens: int | None = None) -> None:
    """Arguments for the model, the peers and, if lengths vary, the maximum length for peers."""
    parser.add_argument("preset", nargs="?", default="goldfinch-L12-D768")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--peers", nargs="*", default=list(NEEDS), choices=list(NEEDS), help="none: only GoldFinch")
    if max_peer_tokens is not None:
        parser.add_argument("--max-peer-tokens", type=int, default=max_peer_tokens, help="maximum tokens for peers")


def installed(names: list[str]) -> list[str]:
    """The installed peers; a line on stderr names the others."""
    found = []
    for name in names:
        missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipping {name}, which needs {', '.join(missing)}: {INSTALL}", file=sys.stderr)
        else:
            found.append(name)
    return found


@contextmanager
def peers(names: list[str], shape: Shape) -> Iterator[dict[str, Peer]]:
    """The installed peers, checked to agree with each other."""
    with ExitStack() as open_peers:
        folder = Path(open_peers.enter_context(tempfile.TemporaryDirectory()))
        found: dict[str, Peer] = {}
        for name in installed(names):
            found[name] = _make(name, shape, folder)
            open_peers.callback(found[name].release)
        check_peers(found, shape)
        yield found


def _make(name: str, shape: Shape, folder: Path) -> Peer:
    if name == "transformers":
        return Transformers(shape)
    return LlamaCpp(shape, folder, flash_attention=name.endswith("flash"))


def check_peers(found: dict[str, Peer], shape: Shape) -> None:
    """Check that peers make the same prediction after the same tokens.

    Raises:
        RuntimeError: log-probabilities differ by more than `TOLERANCE`, or the most likely tokens differ.
    """
    ids = moby_dick(CHECKED_TOKENS)
    predicted = {name: peer.log_probabilities(ids) for name, peer in found.items()}
    for name, one in predicted.items():
        for other_name, other in predicted.items():
            difference = float((one - other).abs().max())
            if not difference <= TOLERANCE[shape.dtype]:
                raise RuntimeError(f"{name} and {other_name} disagree by {difference:.2g} nats; no speed is shown")
            # Different most likely tokens are a disagreement only if rounding cannot explain it.
            if float(one.max() - one[other.argmax()]) > 2 * TOLERANCE[shape.dtype]:
                raise RuntimeError(f"{name} and {other_name} predict different tokens; no speed is shown")
