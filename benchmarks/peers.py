"""What GoldFinch is compared with: a Llama of the same depth, width and vocabulary, by transformers and by llama.cpp.

All have one interface, GoldFinch too. Peers are installed by `pip install -e '.[bench]'`; those that are not are left
out. Both Llamas have the very same weights: heads of 64, RMSNorm, SwiGLU of width floor(8D/3/32)*32, RoPE base 10000, a
head of its own.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from common import moby_dick
from torch import Tensor

import goldfinch as gf
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.rounds import seconds
from goldfinch.inference.speed_benchmark import check_agreement, fill_zero_weights, read_seconds, weight_bytes
from goldfinch.presets import model_config

INSTALL = "pip install -e '.[bench]'"
NEEDS = {
    "transformers": ("transformers",),
    "llama.cpp": ("transformers", "xllamacpp", "gguf"),
    "llama.cpp-flash": ("transformers", "xllamacpp", "gguf"),
}
"""Peer -> packages. llama.cpp computes attention in two ways; which one is faster depends on length and processor."""
HEAD_SIZE = 64
NORM_EPS = 1e-5
ROPE_BASE = 10000.0
LONGEST = 1 << 17  # tokens that the Llamas are declared to take
CHECKED_TOKENS = 200
# Nats that log-probabilities may be apart. llama.cpp stores keys and values in fp16, also where the weights are fp32.
TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.3}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model, the type of its weights, and the seed they are drawn from."""

    layers: int
    width: int
    vocab_size: int
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def of(cls, preset: str, dtype: str) -> "Shape":
        """The sizes of a preset."""
        config = model_config(preset)
        return cls(config.layers, config.width, config.vocab_size, dtype)

    @property
    def heads(self) -> int:
        """Of the Llamas."""
        return self.width // HEAD_SIZE

    @property
    def channel_width(self) -> int:
        """SwiGLU's, in the Llamas."""
        return 8 * self.width // 3 // 32 * 32


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


def llama(shape: Shape) -> Any:
    """`LlamaForCausalLM` of transformers."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.channel_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        rms_norm_eps=NORM_EPS,
        tie_word_embeddings=False,
        # Queries, keys and logits of about 1: attention that looks somewhere, so that agreement means something.
        initializer_range=shape.width**-0.5,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(shape.seed)
    return transformers.LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()


class Transformers:
    """The Llama of transformers."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.model = llama(shape)
        self.weight_bytes = weight_bytes(self.model, self.model.get_input_embeddings())
        self._cache_class = importlib.import_module("transformers").DynamicCache

    @torch.inference_mode()
    def _last_logits(self, ids: Tensor, cache: Any) -> Tensor:
        output = self.model(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float()

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """As `Peer`."""
        return self._last_logits(ids, None).log_softmax(-1)

    def read_seconds(self, ids: Tensor) -> float:
        """As `Peer`."""
        return seconds(lambda: self._last_logits(ids, None))

    @torch.inference_mode()
    def writer(self, ids: Tensor, tokens: int) -> Callable[[], float]:
        """As `Peer`. The cache is filled with noise: what is in it costs nothing."""
        cache = self._cache_class()
        size = (1, self.shape.heads, len(ids), HEAD_SIZE)
        for layer in range(self.shape.layers):
            cache.update(*torch.randn(2, *size).to(getattr(torch, self.shape.dtype)), layer)

        def write() -> None:
            for token in range(tokens):
                self._last_logits(torch.tensor([token]), cache)

        return lambda: seconds(write) / tokens

    def release(self) -> None:
        """As `Peer`."""
        del self.model


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
    from llama_cpp import LlamaCpp

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
