"""What rounding latents to small integers changes, measured on the text that was read."""

import dataclasses
from collections.abc import Iterable, Iterator

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

MAX_SAMPLES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """Next-token predictions from quantized latents, compared with those from the latents before quantization.

    >>> report = lm.read("Call me Ishmael. " * 20, latents="int8").measure_quantization()
    >>> report.latents, report.max_kl >= report.mean_kl
    ('int8', True)
    """

    latents: str
    """The format that was measured."""
    num_tokens: int
    """Length of the text that it was measured on."""
    num_positions: int
    """Number of positions in it, evenly spaced, at which predictions were compared."""
    mean_kl: float
    """Mean divergence KL(unquantized || quantized) of the predictions, nats."""
    max_kl: float
    """The largest of them, nats."""
    top1_agreement: float
    """Fraction of the positions at which both have the same most likely token."""
    prediction_hash: str
    """`fingerprint.prediction_hash` of the model that predicted."""


class QuantizationProbe:
    """Keeps, while a text is read, what a report is measured from: all latents unquantized, and sampled positions.

    Until the report is made it takes as much memory as a context with unquantized latents.

    Args:
        model: with GOLD layers.
        max_samples: maximum number of positions.
    """

    def __init__(self, model: Decoder, max_samples: int = MAX_SAMPLES) -> None:
        self._model = model
        self.key_cache = KeyCache(model.config, FloatLatents(model.dtype), model.device)
        self._max_samples = self._stride = max_samples
        self._samples: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.key_cache.nbytes + sum(sample.nbytes for sample in self._samples.values())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are held."""
        yield from self.key_cache.tensors()
        yield from self._samples.values()

    def observe(self, ids: Tensor, latents: Tensor, x: Tensor, before: LowerState | None) -> None:
        """Record new tokens: (T,) ids, (T, R) latents, outputs below GOLD (1, T, D), and the state before them."""
        start, num_tail = len(self.key_cache), tail_length(self._model)
        self.key_cache.append(ids, latents)
        x = x if before is None else torch.cat([before.tail, x], dim=1)
        first = len(self.key_cache) - x.shape[1]  # position of x[:, 0]
        for position in range(start // self._stride * self._stride, len(self.key_cache), self._stride):
            if position >= max(start, num_tail):
                self._samples[position] = x[:, position - num_tail - first : position + 1 - first].clone()
        while len(self._samples) > self._max_samples:
            self._stride *= 2
            self._keep(position for position in self._samples if position % self._stride == 0)

    def truncate(self, length: int) -> None:
        """Drop the tokens from `length` on."""
        self.key_cache.truncate(length)
        self._keep(position for position in self._samples if position < length)

    def _keep(self, positions: Iterable[int]) -> None:
        self._samples = {position: self._samples[position] for position in positions}

    def fork(self) -> "QuantizationProbe":
        """The same for a fork of the context."""
        other = QuantizationProbe(self._model, self._max_samples)
        other.key_cache, other._stride, other._samples = self.key_cache.fork(), self._stride, dict(self._samples)
        return other

    def measure_quantization(self, quantized: KeyCache) -> QuantizationReport | None:
        """Compare predictions at the sampled positions; None for a text too short to have any.

        Args:
            quantized: the same tokens with quantized latents.
        """
        if not self._samples or quantized.format is None:
            return None
        exact, rounded = (self._logits(cache).double().log_softmax(-1) for cache in (self.key_cache, quantized))
        kl = (exact.exp() * (exact - rounded)).sum(-1).clamp(min=0)
        return QuantizationReport(
            latents=quantized.format.name,
            num_tokens=len(quantized),
            num_positions=len(kl),
            mean_kl=kl.mean().item(),
            max_kl=kl.max().item(),
            top1_agreement=(exact.argmax(-1) == rounded.argmax(-1)).double().mean().item(),
            prediction_hash=prediction_hash(self._model),
        )

    def _logits(self, key_cache: KeyCache) -> Tensor:
        """(samples, V): predictions at the sampled positions, from the latents of a key cache."""
        num_tail = tail_length(self._model)
        ends = torch.tensor(list(self._samples), device=self._model.device)
        back = torch.arange(1 - num_tail, 1, device=ends.device)
        source = _QueriesInside(source=KeyValueCache(self._model, key_cache, 0), query_positions=ends[:, None] + back)
        tail = torch.cat(list(self._samples.values()))
        hidden, _ = read_upper(self._model, tail, num_tail + 1, None, source)
        return self._model.head(hidden[:, 0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _QueriesInside:
    """Keys and values for queries from positions inside the text (a `KeyValueSource`)."""

    source: KeyValueCache
    query_positions: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def keys_values(self, layer: Gold) -> Iterable[KeyValueBlock]:
        return self.source.keys_values(layer)
