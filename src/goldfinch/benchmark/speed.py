"""Speed of prefill and decode on this machine, next to the machine's own limits."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goldfinch.benchmark.timing import Timings, interleave, seconds
from goldfinch.cache.key_value_cache import CacheLevel
from goldfinch.config import ModelConfig
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.language_model import LanguageModel
from goldfinch.model import Decoder
from goldfinch.model.accounting import TRAINING_PASSES, account

PREFILL_TOKENS = 2048  # of the prompt
LENGTHS = (512, 2048, 8192)  # tokens before the decoded ones
PRODUCT_TOKENS = 1024  # rows of the matrix products that prefill is compared with: the tokens of one chunk
MIN_PRODUCT_FLOPS = 1 << 32  # per measurement: with fewer, clock and caches matter
COPY_BYTES = 1 << 28  # much larger than any cache
EMBEDDING_TABLE_BYTES = 512 << 20  # for the table of embedding keys, on top of what a level keeps
HEADROOM_TOKENS = 1024  # tokens that may be decoded before a level exceeds its budget
CHECKED_TOKENS, CHECKED_STEPS = 300, 3


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement of what the machine can do."""

    amount: int
    """FLOPs or bytes per measurement."""
    measure: Callable[[], float]
    """Does it once; returns seconds."""

    def rate(self, samples: Timings) -> float:
        """FLOP/s or bytes/s: the median."""
        return self.amount / samples.median

    def share(self, amount: float, ours: Timings, samples: Timings) -> float:
        """The fraction of the machine's rate at which `ours` did `amount` of the same, in the same repeats."""
        return amount / self.amount * ours.times_faster(samples)


def product_probe(width: int, channel_width: int, dtype: torch.dtype) -> Probe:
    """Matrix products as in a layer: D -> D, D -> F and F -> D for the tokens of a chunk, by `F.linear`."""
    shapes = ((width, width), (width, channel_width), (channel_width, width))
    work = [(torch.randn(PRODUCT_TOKENS, a).to(dtype), torch.randn(b, a).to(dtype)) for a, b in shapes]
    once = 2 * PRODUCT_TOKENS * sum(a * b for a, b in shapes)
    repeats = -(-MIN_PRODUCT_FLOPS // once)

    @torch.inference_mode()
    def multiply() -> None:
        for _ in range(repeats):
            for x, weight in work:
                F.linear(x, weight)

    return Probe(once * repeats, partial(seconds, multiply))


def copy_probe() -> Probe:
    """Copying a tensor; bytes read and bytes written both count."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Probe(2 * COPY_BYTES, partial(seconds, lambda: target.copy_(source)))


def weight_bytes(model: nn.Module, embedding: nn.Module) -> int:
    """Bytes of weights that must be read per decoded token: all but the embedding, of which one row is read."""
    return sum(weight.nbytes for weight in model.parameters()) - sum(weight.nbytes for weight in embedding.parameters())


def training_product_flops(config: ModelConfig, sequence_length: int) -> int:
    """FLOPs per token of all products, with head and attention, forward and backward: three forwards."""
    costs = account(config, sequence_length)
    return costs.training_flops_per_token - TRAINING_PASSES * costs.recurrence_flops_per_token


def prefill_product_flops(config: ModelConfig) -> int:
    """FLOPs per prompt token of matrix products: of the layers below GOLD, and W_KD."""
    costs = account(config, sequence_length=1)
    return costs.prefill_flops_per_token - costs.recurrence_flops_per_token


@torch.no_grad()
def fill_zero_weights(model: Decoder, seed: int = 0) -> None:
    """Replace matrices that are initialised to zero by noise.

    With them every layer of an untrained model is the identity, and comparing outputs would compare nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            bound = weight.shape[-1 if weight.ndim == 2 else -2] ** -0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)


def benchmark_ids(lm: LanguageModel, tokens: int) -> Tensor:
    """(tokens,) ids of Moby-Dick, repeated if it is too short; random ids without a tokenizer."""
    if lm.tokenizer is None:
        return torch.randint(lm.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    # A token has four bytes or more: this much text is enough, and no more is encoded than needed.
    ids = lm.encode("\n\n".join(moby_dick_chapters())[: 16 * tokens])
    return ids.repeat(-(-tokens // len(ids)))[:tokens]


def prefill_seconds(lm: LanguageModel, ids: Tensor) -> float:
    """Seconds for the prefill of (T,) ids, with the logits after the last."""
    return seconds(lambda: _finite(lm.read(ids)))


def decode_seconds(context: Context, tokens: int) -> float:
    """Seconds per decoded token, with its logits: the mean over `tokens`."""

    def decode() -> None:
        for token in range(tokens):
            _finite(context.read([token]))

    return seconds(decode) / tokens


def _finite(context: Context) -> None:
    if not context.logits.isfinite().all():
        raise RuntimeError("logits are not finite")


def levels(lm: LanguageModel) -> tuple[CacheLevel | None, ...]:
    """The cache levels of this model; None alone in models without GOLD layers."""
    return get_args(CacheLevel) if lm.config.num_gold_layers else (None,)


def at_level(context: Context, level: CacheLevel | None, table_bytes: int = EMBEDDING_TABLE_BYTES) -> Context:
    """A fork at exactly this cache level, with everything expanded that it keeps.

    The logits of `context` must not have been computed yet: that would have used another level.
    """
    fork = context.fork()
    expansion = fork.sequence.key_value_cache
    if expansion is not None and level is not None:
        tokens = len(fork)
        expansion.budget = {
            "keys_values": expansion.nbytes_at("keys_values", tokens + HEADROOM_TOKENS),
            # For lower levels: one byte too little for the next one.
            "shared_keys": expansion.nbytes_at("keys_values", tokens) - 1,
            "latents": min(table_bytes, expansion.nbytes_at("shared_keys", tokens) - 1),
        }[level]
        if expansion.level != level:
            raise RuntimeError(f"{tokens} tokens are at cache level {expansion.level!r}, not {level!r}")
    _finite(fork)
    return fork


def tolerance(dtype: torch.dtype) -> float:
    """Maximum difference between two ways of computing the same logits, relative to the largest logit."""
    return 1e-3 if dtype.itemsize >= 4 else 5e-2


def check_agreement(lm: LanguageModel, ids: Tensor) -> float:
    """Check that prefill, and decode at every level, give the logits of the whole forward.

    Args:
        lm: any model.
        ids: (T,), T > 3; the first 300 are used.

    Returns:
        The maximum difference, relative to the largest logit.

    Raises:
        RuntimeError: they disagree, so a speed would mean nothing.
    """
    ids = ids[:CHECKED_TOKENS]
    expected = lm.logits(ids[None])[0, -1]
    found = {"prefill": lm.read(ids).logits}
    for level in levels(lm):
        context = at_level(lm.read(ids[:-CHECKED_STEPS]), level)
        for token in ids[-CHECKED_STEPS:].tolist():
            logits = context.read([token]).logits
        found[f"decode ({level})" if level else "decode"] = logits
    return compare(expected, found, tolerance(lm.model.dtype))


def compare(expected: Tensor, found: dict[str, Tensor], allowed: float) -> float:
    """Check that several (V,) tensors are close to the expected one.

    Args:
        expected: what the others are compared with.
        found: name -> computed.
        allowed: maximum difference, relative to the largest expected number.

    Returns:
        The maximum difference, relative in the same way.
    """
    max_difference = 0.0
    for name, logits in found.items():
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference <= allowed:
            raise RuntimeError(
                f"{name}: outputs disagree by {difference:.1e} of the largest, over {allowed:.0e}; no speed is shown"
            )
        max_difference = max(max_difference, difference)
    return max_difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """Decoding after a text."""

    tokens: int
    """Length of the text."""
    level: CacheLevel | None
    """What is kept expanded."""
    kept_bytes: int
    """Bytes of the key-value cache."""
    seconds: list[float]
    """Per token, in each repeat."""
    bound_share: float
    """Minimum possible time of a step, as a fraction of the measured time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of one model on this machine. Measurements are interleaved; rates of the machine are medians."""

    parameters: int
    dtype: str
    threads: int
    prefill_tokens: int
    """Length of the prompt."""
    prefill_seconds: list[float]
    """For the whole prompt, with logits, in each repeat."""
    product_share: float
    """The fraction of `product_flops_per_second` that prefill reaches, counting only its matrix products."""
    product_flops_per_second: float
    """Speed of `torch.nn.functional.linear` at the shapes of this model."""
    copy_bytes_per_second: float
    """Speed of copying a large tensor, bytes read plus bytes written."""
    weight_bytes: int
    """Weights that every decoded token must read."""
    bound_seconds: float
    """Minimum time of a step: reading these weights at that rate."""
    decodes: list[Decode]
    max_difference: float
    """Maximum difference from the logits of the whole forward, relative to the largest logit."""

    @property
    def tokens_per_second(self) -> list[float]:
        """Of prefill, in each repeat."""
        return [self.prefill_tokens / taken for taken in self.prefill_seconds]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        medians = {"prefill_tokens_per_second": statistics.median(self.tokens_per_second)}
        return dataclasses.asdict(self) | medians


def measure(
    lm: LanguageModel,
    prefill_tokens: int | None = None,
    lengths: Sequence[int] | None = None,
    repeats: int = 3,
    decode_tokens: int = 4,
    latents: str | None = "bfloat16",
) -> Speed:
    """Check that prefill and decode agree with the whole forward, then measure.

    Args:
        lm: any model.
        prefill_tokens: length of the prompt; None for 2,048.
        lengths: tokens before the decoded ones; None for 512, 2,048 and 8,192.
        repeats: each measures everything once.
        decode_tokens: tokens per repeat.
        latents: format of the latents; None for the model's own dtype.

    Raises:
        UserError: a length is below 1, or an unknown format.
        RuntimeError: outputs disagree.
    """
    prefill_tokens = PREFILL_TOKENS if prefill_tokens is None else prefill_tokens
    lengths = LENGTHS if lengths is None else lengths
    if min(prefill_tokens, repeats, decode_tokens, *lengths) < 1:
        raise UserError("lengths, repeats and decoded tokens must be at least 1")
    model, config = lm.model, lm.config
    dtype = model.dtype
    ids = benchmark_ids(lm, max(prefill_tokens, *lengths, CHECKED_TOKENS))
    difference = check_agreement(lm, ids)
    products, copy = product_probe(config.width, config.channel_mix_width, dtype), copy_probe()
    contexts = {case: context for length in lengths for case, context in _contexts(lm, ids[:length], latents)}
    cases: dict[Any, Callable[[], float]] = {
        "products": products.measure,
        "copy": copy.measure,
        "prefill": lambda: prefill_seconds(lm, ids[:prefill_tokens]),
    }
    cases |= {case: partial(decode_seconds, context, decode_tokens) for case, context in contexts.items()}
    taken = interleave(cases, repeats)
    weights = weight_bytes(model, model.embedding)
    return Speed(
        parameters=account(config).parameters,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prefill_tokens=prefill_tokens,
        prefill_seconds=taken["prefill"].seconds,
        product_share=products.share(
            prefill_product_flops(config) * prefill_tokens, taken["prefill"], taken["products"]
        ),
        product_flops_per_second=products.rate(taken["products"]),
        copy_bytes_per_second=copy.rate(taken["copy"]),
        weight_bytes=weights,
        bound_seconds=weights / copy.rate(taken["copy"]),
        decodes=[
            Decode(
                tokens=case[0],
                level=case[1],
                kept_bytes=context.memory_usage().key_value_cache,
                seconds=taken[case].seconds,
                bound_share=copy.share(weights, taken[case], taken["copy"]),
            )
            for case, context in contexts.items()
        ],
        max_difference=difference,
    )


def _contexts(
    lm: LanguageModel, ids: Tensor, latents: str | None
) -> list[tuple[tuple[int, CacheLevel | None], Context]]:
    context = lm.read(ids, latents, budget=0)
    return [((len(ids), level), at_level(context, level)) for level in levels(lm)]
