"""Checking that latents belong to their text: the model reads parts of it again and compares."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from goldfinch.cache.latents import FloatLatents, IntegerLatents, LatentFormat
from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.prefill import chunks, read_lower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recomputation:
    """How to recompute the latents of the tokens first .. last - 1: read the text from `start` on."""

    start: int
    """Position of a snapshot, the end of the recomputation before, or 0."""
    first: int
    last: int


def plan_recomputations(spans: Iterable[tuple[int, int]], snapshots: Iterable[int]) -> list[Recomputation]:
    """Plan the recomputation of the latents of some spans of tokens, first .. last - 1, with as few steps as possible.

    Args:
        spans: that do not overlap, such as some of `KeyCache.spans`.
        snapshots: positions at which the state is known.
    """
    plan: list[Recomputation] = []
    known = [0, *snapshots]
    for first, last in sorted(spans):
        start = max(position for position in known if position <= first)
        plan.append(Recomputation(start=start, first=first, last=last))
        known.append(last)
    return plan


@torch.inference_mode()
def verify_latents(
    context: Context, plan: Iterable[Recomputation], source: str, progress: Callable[[int], None] | None = None
) -> float:
    """Recompute latents and compare them with the stored ones, which must be equal within rounding error.

    Args:
        context: of a model with GOLD layers.
        plan: from `plan_recomputations`.
        source: where the latents come from, for the message if they are wrong.
        progress: called now and then with the number of tokens read since the last call.

    Returns:
        The largest difference, as a fraction of the tolerance: 0 for equal numbers, at most 1.

    Raises:
        UserError: latents are not what the model computes from the text.
        ValueError: the model has no GOLD layers.
    """
    model, key_cache = context.model, context.sequence.key_cache
    if model.token_cat is None or key_cache.format is None:
        raise ValueError("a model without GOLD layers has no latents to verify")
    wide = torch.promote_types(model.dtype, torch.float32)
    tolerance = _relative_tolerance(key_cache.format, model.dtype)
    largest = 0.0
    position, state = 0, None
    for each in plan:
        if each.start != position:
            position, state = each.start, context.sequence.snapshots.states.get(each.start)
        for start, stop in _pieces(context, position, each.last):
            _, latents, (state,) = read_lower(model, key_cache.ids(start, stop)[None], [state])
            first = max(start, each.first)
            if first < stop and latents is not None:
                again = latents[0, first - start :].to(wide)
                difference = _scaled_difference(again, key_cache.latents(first, stop, wide), tolerance)
                _check(difference, first, source)
                largest = max(largest, difference.max().item())
            if progress is not None:
                progress(stop - start)
        position = each.last
    return largest


def _pieces(context: Context, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """As `chunks`, but also cut where documents end, as when they were read: equal pieces round equally."""
    ends = {document.stop for document in context.documents if start < document.stop < stop}
    for first, last in itertools.pairwise(sorted({start, *ends, stop})):
        yield from chunks(first, last, context.sequence.chunk_size)


def _relative_tolerance(latents: LatentFormat, dtype: torch.dtype) -> float:
    """How far a stored number may be from the recomputed one, relative to the largest number of its token.

    Storing rounds by half a unit. If a text was read in other pieces, such as token by token, or on another machine,
    every operation may round differently too: the square root of one rounding error is more than that amounts to, and
    far less than the distance to a wrong number.
    """
    if isinstance(latents, IntegerLatents):
        stored = 0.5 / (2 ** (latents.bits - 1) - 1) + torch.finfo(torch.float16).eps
    elif isinstance(latents, FloatLatents):
        stored = torch.finfo(latents.dtype).eps / 2
    else:
        raise TypeError(f"unknown latent format {latents.name}")
    return stored + math.sqrt(torch.finfo(dtype).eps)


def _scaled_difference(ours: Tensor, stored: Tensor, tolerance: float) -> Tensor:
    """(T, R): differences divided by the tolerated ones; infinite for NaN."""
    # Scales of integers are fp16 numbers: below the smallest one, latents become zero.
    floor = 127 * torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    tolerated = tolerance * ours.abs().amax(-1, keepdim=True) + floor
    return ((ours - stored).abs() / tolerated).nan_to_num(nan=math.inf, posinf=math.inf)


def _check(difference: Tensor, first: int, source: str) -> None:
    wrong = (difference > 1).any(-1).nonzero().flatten() + first
    if len(wrong):
        tokens = f"token {wrong[0]}" if len(wrong) == 1 else f"{len(wrong)} tokens from {wrong[0]} to {wrong[-1]}"
        raise UserError(
            f"{source} is corrupt: the latents of {tokens} are not what the model computes from the text; read it again"
        )
