"""What rounding the latents to small integers changes, measured on the very text that was read."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from goldfinch.cache.key_cache import KeyCache
from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.cache.latents import FloatLatents
from goldfinch.inference.context_file.fingerprint import prediction_hash
from goldfinch.inference.prefill import LowerState, read_upper, tail_length
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.ops.attention import KeyValueBlock

MOST_SAMPLES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """Next-token predictions from the stored latents against those from the latents before rounding."""

    latents: str
    """The format that was measured."""
    tokens: int
    """Length of the text that it was measured on."""
    positions: int
    """At how many places of it, evenly spaced."""
    mean_kl: float
    """Mean divergence KL(unrounded || stored) of the predictions, nats."""
    max_kl: float
    """The largest of them, nats."""
    top1_agreement: float
    """Part of the places at which both have the same likeliest token."""
    weights: str = ""
    """`prediction_hash` of the model that predicted; empty where a file of version 1 does not say."""


class QuantizationProbe:
    """Keeps, while a text is read, what a certificate is measured from: all latents unrounded, and sampled places.

    Until the certificate is made it takes as much memory as a context that rounds nothing.

    Args:
        model: with GOLD layers.
        samples: at most so many places.
    """

    def __init__(self, model: Decoder, samples: int = MOST_SAMPLES) -> None:
        weight = model.head.weight
        self._model = model
        self.key_cache = KeyCache(model.config, FloatLatents(weight.dtype), weight.device)
        self._most = self._stride = samples
        self._samples: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.key_cache.nbytes + sum(sample.nbytes for sample in self._samples.values())

    def observe(self, ids: Tensor, latents: Tensor, x: Tensor, before: LowerState | None) -> None:
        """Take in newly read tokens: (T,) ids, (T, R) latents, outputs below GOLD (1, T, D), and the state before."""
        start, tail = len(self.key_cache), tail_length(self._model)
        self.key_cache.append(ids, latents)
        x = x if before is None else torch.cat([before.recent, x], dim=1)
        first = len(self.key_cache) - x.shape[1]  # position of x[:, 0]
        for position in range(start // self._stride * self._stride, len(self.key_cache), self._stride):
            if position >= max(start, tail):
                self._samples[position] = x[:, position - tail - first : position + 1 - first].clone()
        while len(self._samples) > self._most:
            self._stride *= 2
            self._keep(position for position in self._samples if position % self._stride == 0)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        self.key_cache.truncate(length)
        self._keep(position for position in self._samples if position < length)

    def _keep(self, positions: Iterable[int]) -> None:
        self._samples = {position: self._samples[position] for position in positions}

    def fork(self) -> "QuantizationProbe":
        """The same for a fork of the context."""
        other = QuantizationProbe(self._model, self._most)
        other.key_cache, other._stride, other._samples = self.key_cache.fork(), self._stride, dict(self._samples)
        return other

    def measure_quantization(self, stored: KeyCache) -> QuantizationReport | None:
        """Compare predictions at the sampled places; None for a text too short to have any.

        Args:
            stored: the same tokens with rounded latents.
        """
        assert stored.format is not None
        if not self._samples:
            return None
        logits = [self._logits(memory).double().log_softmax(-1) for memory in (self.key_cache, stored)]
        exact, rounded = logits
        kl = (exact.exp() * (exact - rounded)).sum(-1).clamp(min=0)
        return QuantizationReport(
            latents=stored.format.name,
            tokens=len(stored),
            positions=len(kl),
            mean_kl=kl.mean().item(),
            max_kl=kl.max().item(),
            top1_agreement=(exact.argmax(-1) == rounded.argmax(-1)).double().mean().item(),
            weights=prediction_hash(self._model),
        )

    def _logits(self, memory: KeyCache) -> Tensor:
        """(samples, V): predictions at the sampled places, from these latents."""
        tail = tail_length(self._model)
        ends = torch.tensor(list(self._samples), device=self._model.device)
        back = torch.arange(1 - tail, 1, device=ends.device)
        source = _Sampled(source=KeyValueCache(self._model, memory, 0), query_positions=ends[:, None] + back)
        recent = torch.cat(list(self._samples.values()))
        hidden, _ = read_upper(self._model, recent, tail + 1, None, source)
        hidden = hidden[:, 0]
        return self._model.head(hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A key memory for queries from places inside the text (a `KeyValueSource`)."""

    source: KeyValueCache
    query_positions: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def keys_values(self, layer: Gold) -> Iterable[KeyValueBlock]:
        return self.source.keys_values(layer)
