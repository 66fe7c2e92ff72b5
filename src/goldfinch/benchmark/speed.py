"""How fast a model reads and writes on this machine, beside what the machine could do at best."""

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

READ_TOKENS = 2048  # of the prompt that is read
LENGTHS = (512, 2048, 8192)  # tokens of the texts that are written after
PRODUCT_TOKENS = 1024  # rows of the matrix products that speeds are compared with: the tokens of one chunk
LEAST_PRODUCT_FLOPS = 1 << 32  # in one measurement: below that, clock and caches weigh in
COPIED_BYTES = 1 << 28  # far more than any cache holds
ID_TABLE_BYTES = 512 << 20  # for the table of ids, on top of what a level keeps
GROWTH = 1024  # tokens that may be written before a level's budget is used up
CHECKED_TOKENS, CHECKED_STEPS = 300, 3


@dataclasses.dataclass(frozen=True)
class Probe:
    """Something that shows what the machine can do."""

    amount: int
    """FLOPs or bytes of one measurement."""
    measure: Callable[[], float]
    """Does it once; returns seconds."""

    def rate(self, samples: Timings) -> float:
        """FLOP/s or bytes/s: the median."""
        return self.amount / samples.median

    def share(self, amount: float, ours: Timings, samples: Timings) -> float:
        """The fraction of the machine's rate at which `ours` did `amount` of the same, in the same rounds."""
        return amount / self.amount * ours.times_faster(samples)


def product_probe(width: int, channel_width: int, dtype: torch.dtype) -> Probe:
    """Matrix products as in a layer: D -> D, D -> F and F -> D for the tokens of a chunk, by `F.linear`."""
    shapes = ((width, width), (width, channel_width), (channel_width, width))
    work = [(torch.randn(PRODUCT_TOKENS, a).to(dtype), torch.randn(b, a).to(dtype)) for a, b in shapes]
    once = 2 * PRODUCT_TOKENS * sum(a * b for a, b in shapes)
    repeats = -(-LEAST_PRODUCT_FLOPS // once)

    @torch.inference_mode()
    def multiply() -> None:
        for _ in range(repeats):
            for x, weight in work:
                F.linear(x, weight)

    return Probe(once * repeats, partial(seconds, multiply))


def copy_probe() -> Probe:
    """Copying a tensor; the bytes are those read and those written."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Probe(2 * COPIED_BYTES, partial(seconds, lambda: target.copy_(source)))


def weight_bytes(model: nn.Module, embedding: nn.Module) -> int:
    """Bytes of weights that must be read for each token written: all but the embedding, of which it is one row."""
    return sum(weight.nbytes for weight in model.parameters()) - sum(weight.nbytes for weight in embedding.parameters())


def training_product_flops(config: ModelConfig, sequence_length: int) -> int:
    """FLOPs a token of the products, head and attention included, of forward and backward: three forwards."""
    costs = account(config, sequence_length)
    return costs.training_flops_per_token - TRAINING_PASSES * costs.recurrence_flops_per_token


def prefill_product_flops(config: ModelConfig) -> int:
    """FLOPs of the matrix products that every token of a prompt goes through: of the layers below GOLD, and W_KD."""
    costs = account(config, sequence_length=1)
    return costs.prefill_flops_per_token - costs.recurrence_flops_per_token


@torch.no_grad()
def fill_zero_weights(model: Decoder, seed: int = 0) -> None:
    """Put noise in place of the matrices that start at zero.

    With them every layer of an untrained model adds nothing, and a comparison of its outputs compares nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            bound = weight.shape[-1 if weight.ndim == 2 else -2] ** -0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)


def benchmark_ids(lm: LanguageModel, tokens: int) -> Tensor:
    """(tokens,) ids of Moby-Dick, again from its beginning where it is too short; random ones without a tokenizer."""
    if lm.tokenizer is None:
        return torch.randint(lm.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    # Four bytes a token and more: what is read of the text is enough, and no more is encoded than needed.
    ids = lm.encode("\n\n".join(moby_dick_chapters())[: 16 * tokens])
    return ids.repeat(-(-tokens // len(ids)))[:tokens]


def read_seconds(lm: LanguageModel, ids: Tensor) -> float:
    """How long reading (T,) ids takes, up to the logits after the last."""
    return seconds(lambda: _finite(lm.read(ids)))


def write_seconds(context: Context, tokens: int) -> float:
    """How long one more token takes, logits included: the mean of so many."""

    def write() -> None:
        for token in range(tokens):
            _finite(context.read([token]))

    return seconds(write) / tokens


def _finite(context: Context) -> None:
    if not context.logits.isfinite().all():
        raise RuntimeError("logits are not finite")


def levels(lm: LanguageModel) -> tuple[CacheLevel | None, ...]:
    """What a context of this model may keep rebuilt; None alone in models without GOLD layers."""
    return get_args(CacheLevel) if lm.config.num_gold_layers else (None,)


def at_level(context: Context, level: CacheLevel | None, id_table: int = ID_TABLE_BYTES) -> Context:
    """A fork that keeps just this level, and a table of ids besides; everything that it keeps is there already.

    The logits of `context` must not have been asked for: they would have been worked out at another level.
    """
    fork = context.fork()
    expansion = fork.sequence.key_value_cache
    if expansion is not None and level is not None:
        tokens = len(fork)
        expansion.budget = {
            "keys_values": expansion.nbytes_at("keys_values", tokens + GROWTH),
            # Of the lower levels: what is just too little for the next one.
            "shared_keys": expansion.nbytes_at("keys_values", tokens) - 1,
            "latents": min(id_table, expansion.nbytes_at("shared_keys", tokens) - 1),
        }[level]
        if expansion.level != level:
            raise RuntimeError(f"{tokens} tokens are kept at the level {expansion.level!r}, not at {level!r}")
    _finite(fork)
    return fork


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same logits may be apart, as a fraction of the largest logit."""
    return 1e-3 if dtype.itemsize >= 4 else 5e-2


def check_agreement(lm: LanguageModel, ids: Tensor) -> float:
    """Raise where reading, or writing at any level, gives other logits than the whole forward.

    Args:
        lm: any model.
        ids: (T,), T > 3; the first 300 are used.

    Returns:
        The largest difference, as a fraction of the largest logit.

    Raises:
        RuntimeError: they disagree; a speed would mean nothing.
    """
    ids = ids[:CHECKED_TOKENS]
    expected = lm.logits(ids[None])[0, -1]
    found = {"reading": lm.read(ids).logits}
    for level in levels(lm):
        context = at_level(lm.read(ids[:-CHECKED_STEPS]), level)
        for token in ids[-CHECKED_STEPS:].tolist():
            logits = context.read([token]).logits
        found[f"writing ({level})" if level else "writing"] = logits
    return compare(expected, found, tolerance(lm.model.dtype))


def compare(expected: Tensor, found: dict[str, Tensor], allowed: float) -> float:
    """Raise where one of several (V,) tensors is not the expected one.

    Args:
        expected: what the others are compared with.
        found: name -> what it gave.
        allowed: largest difference, as a fraction of the largest number expected.

    Returns:
        The largest difference, as such a fraction.
    """
    largest = 0.0
    for name, logits in found.items():
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference <= allowed:
            raise RuntimeError(
                f"{name}: outputs disagree by {difference:.1e} of the largest, not {allowed:.0e}; no speed is shown"
            )
        largest = max(largest, difference)
    return largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """Writing after a text."""

    tokens: int
    """Length of the text."""
    level: CacheLevel | None
    """What is kept rebuilt of it."""
    kept_bytes: int
    """For that."""
    seconds: list[float]
    """A token, in each round."""
    bound_share: float
    """Of the shortest possible step: how near to 1 this is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """One model on this machine. All was measured in turns; rates of the machine are medians."""

    parameters: int
    dtype: str
    threads: int
    read_tokens: int
    """Length of the prompt."""
    read_seconds: list[float]
    """For all of it, logits included, in each round."""
    product_share: float
    """The fraction of `product_flops_per_second` that reading reaches, counting its matrix products alone."""
    product_flops_per_second: float
    """What `torch.nn.functional.linear` reaches at the shapes of this model."""
    copy_bytes_per_second: float
    """Read and written, when a large tensor is copied."""
    weight_bytes: int
    """Weights that every written token must read."""
    bound_seconds: float
    """The shortest possible step: reading these weights at that rate."""
    writings: list[Writing]
    largest_difference: float
    """Between the logits of these ways and the whole forward, as a fraction of the largest logit."""

    @property
    def tokens_per_second(self) -> list[float]:
        """Of reading, in each round."""
        return [self.read_tokens / taken for taken in self.read_seconds]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        medians = {"read_tokens_per_second": statistics.median(self.tokens_per_second)}
        return dataclasses.asdict(self) | medians


def measure(
    lm: LanguageModel,
    read_tokens: int | None = None,
    lengths: Sequence[int] | None = None,
    rounds: int = 3,
    written: int = 4,
    latents: str | None = "bfloat16",
) -> Speed:
    """Check that all ways of computing agree, then measure.

    Args:
        lm: any model.
        read_tokens: length of the prompt that is read; None for 2,048.
        lengths: of the texts that are written after; None for 512, 2,048 and 8,192.
        rounds: each measures everything once.
        written: tokens per round.
        latents: what compressed keys are stored in; None for the model's own type.

    Raises:
        UserError: a length below 1, or an unknown format.
        RuntimeError: outputs disagree.
    """
    read_tokens = READ_TOKENS if read_tokens is None else read_tokens
    lengths = LENGTHS if lengths is None else lengths
    if min(read_tokens, rounds, written, *lengths) < 1:
        raise UserError("lengths, rounds and written tokens must be at least 1")
    model, config = lm.model, lm.config
    dtype = model.dtype
    ids = benchmark_ids(lm, max(read_tokens, *lengths, CHECKED_TOKENS))
    difference = check_agreement(lm, ids)
    products, copy = product_probe(config.width, config.channel_mix_width, dtype), copy_probe()
    contexts = {case: context for length in lengths for case, context in _contexts(lm, ids[:length], latents)}
    cases: dict[Any, Callable[[], float]] = {
        "products": products.measure,
        "copy": copy.measure,
        "read": lambda: read_seconds(lm, ids[:read_tokens]),
    }
    cases |= {case: partial(write_seconds, context, written) for case, context in contexts.items()}
    taken = interleave(cases, rounds)
    weights = weight_bytes(model, model.embedding)
    return Speed(
        parameters=account(config).parameters,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        read_tokens=read_tokens,
        read_seconds=taken["read"].seconds,
        product_share=products.share(prefill_product_flops(config) * read_tokens, taken["read"], taken["products"]),
        product_flops_per_second=products.rate(taken["products"]),
        copy_bytes_per_second=copy.rate(taken["copy"]),
        weight_bytes=weights,
        bound_seconds=weights / copy.rate(taken["copy"]),
        writings=[
            Writing(
                tokens=case[0],
                level=case[1],
                kept_bytes=context.memory_usage().key_value_cache,
                seconds=taken[case].seconds,
                bound_share=copy.share(weights, taken[case], taken["copy"]),
            )
            for case, context in contexts.items()
        ],
        largest_difference=difference,
    )


def _contexts(
    lm: LanguageModel, ids: Tensor, latents: str | None
) -> list[tuple[tuple[int, CacheLevel | None], Context]]:
    context = lm.read(ids, latents, budget=0)
    return [((len(ids), level), at_level(context, level)) for level in levels(lm)]
