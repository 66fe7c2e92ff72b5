"""What GoldFinch is compared with: a Llama of the same depth, width and vocabulary, by transformers and by llama.cpp.

All have one interface, GoldFinch too. Peers are installed by `pip install -e '.[bench]'`; those that are not are left
out. Both Llamas have the very same weights: heads of 64, RMSNorm, SwiGLU of width floor(8D/3/32)*32, RoPE base 10000, a
head of its own.
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
from goldfinch.benchmark.speed import check_agreement, fill_zero_weights, read_seconds, weight_bytes
from goldfinch.inference.language_model import LanguageModel

INSTALL = "pip install -e '.[bench]'"
NEEDS = {
    "transformers": ("transformers",),
    "llama.cpp": ("transformers", "xllamacpp", "gguf"),
    "llama.cpp-flash": ("transformers", "xllamacpp", "gguf"),
}
"""Peer -> packages. llama.cpp computes attention in two ways; which one is faster depends on length and processor."""
CHECKED_TOKENS = 200
# Nats that log-probabilities may be apart. llama.cpp stores keys and values in fp16, also where the weights are fp32.
TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.3}


class Peer(Protocol):
    """A model that reads and writes."""

    weight_bytes: int
    """Of the weights that each written token must read."""

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """(T,) ids -> (V,) float32: of what follows the last."""

    def read_seconds(self, ids: Tensor) -> float:
        """How long reading (T,) ids takes, up to the logits after the last."""

    def writer(self, ids: Tensor, tokens: int) -> Callable[[], float]:
        """What writes so many tokens after (T,) ids at each call, and returns the seconds that one takes."""

    def release(self) -> None:
        """Give everything back."""


class GoldFinch:
    """Ours, with weights that leave no part of the model without effect."""

    def __init__(self, preset: str, dtype: str, seed: int = 0) -> None:
        self.lm: LanguageModel = gf.build(preset, dtype, seed)
        fill_zero_weights(self.lm.model, seed)
        self.weight_bytes = weight_bytes(self.lm.model, self.lm.model.embedding)

    def check(self) -> float:
        """Raise where reading or writing gives other logits than the whole forward; the largest difference."""
        return check_agreement(self.lm, moby_dick(CHECKED_TOKENS))

    def read_seconds(self, ids: Tensor) -> float:
        """As `Peer`."""
        return read_seconds(self.lm, ids)


def add_arguments(parser: argparse.ArgumentParser, longest: int | None = None) -> None:
    """The model, which peers, and, where lengths differ, how much of one's patience they get."""
    parser.add_argument("preset", nargs="?", default="goldfinch-L12-D768")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--peers", nargs="*", default=list(NEEDS), choices=list(NEEDS), help="none for GoldFinch alone")
    if longest is not None:
        parser.add_argument("--longest-peer", type=int, default=longest, help="tokens that peers are given at most")


def installed(names: list[str]) -> list[str]:
    """Those peers that are; a line on stderr names the others."""
    found = []
    for name in names:
        missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name} is left out, without {', '.join(missing)}: {INSTALL}", file=sys.stderr)
        else:
            found.append(name)
    return found


@contextmanager
def peers(names: list[str], shape: Shape) -> Iterator[dict[str, Peer]]:
    """Those that are installed, checked to agree with each other."""
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
    """Raise where peers do not predict the same after the same tokens.

    Raises:
        RuntimeError: log-probabilities differ by more than `TOLERANCE`, or the likeliest token does.
    """
    ids = moby_dick(CHECKED_TOKENS)
    predicted = {name: peer.log_probabilities(ids) for name, peer in found.items()}
    for name, one in predicted.items():
        for other_name, other in predicted.items():
            difference = float((one - other).abs().max())
            if not difference <= TOLERANCE[shape.dtype]:
                raise RuntimeError(f"{name} and {other_name} disagree by {difference:.2g} nats; no speed is shown")
            # Another likeliest token is a disagreement only where rounding cannot have chosen it.
            if float(one.max() - one[other.argmax()]) > 2 * TOLERANCE[shape.dtype]:
                raise RuntimeError(f"{name} and {other_name} would write different tokens; no speed is shown")
