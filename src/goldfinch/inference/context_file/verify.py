"""Proof that latents belong to their text: the model reads parts of it again and comes to the same numbers."""

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
class Replay:
    """Tokens first .. last - 1, and from where on they must be read for their latents."""

    start: int
    """A snapshot's position, the end of the replay before, or 0."""
    first: int
    last: int


def plan_replays(spans: Iterable[tuple[int, int]], snapshots: Iterable[int]) -> list[Replay]:
    """How to come by the latents of spans of tokens, first .. last - 1, that do not overlap, in as few steps as can be.

    Args:
        spans: of `KeyCache.spans`, for example.
        snapshots: positions at which the state is known.
    """
    replays: list[Replay] = []
    known = [0, *snapshots]
    for first, last in sorted(spans):
        start = max(position for position in known if position <= first)
        replays.append(Replay(start=start, first=first, last=last))
        known.append(last)
    return replays


@torch.inference_mode()
def verify_latents(
    context: Context, replays: Iterable[Replay], source: str, progress: Callable[[int], None] | None = None
) -> float:
    """Read tokens again and compare their latents with those in memory, which must be equal but for rounding.

    Args:
        context: of a model with GOLD layers.
        replays: of `plan_replays`.
        source: where the latents come from, for the message when they are wrong.
        progress: called now and then with the number of tokens read since the last call.

    Returns:
        The largest difference, as a part of what rounding explains: 0 for equal numbers, at most 1.

    Raises:
        UserError: latents are not what the model makes of the text.
    """
    model, memory = context.model, context.sequence.key_cache
    assert model.token_cat is not None
    assert memory.format is not None
    dtype = model.dtype
    wide = torch.promote_types(dtype, torch.float32)
    share = _tolerated_share(memory.format, dtype)
    largest = 0.0
    position, state = 0, None
    for replay in replays:
        if replay.start != position:
            position, state = replay.start, context.sequence.snapshots.get(replay.start)
        for start, stop in _pieces(context, position, replay.last):
            x, state = read_lower(model, memory.ids(start, stop), state)
            first = max(start, replay.first)
            if first < stop:
                latents = model.token_cat.compress(x[:, first - start :])[0].to(wide)
                excess = _excess(latents, memory.latents(first, stop, wide), share)
                _check(excess, first, source)
                largest = max(largest, excess.max().item())
            if progress is not None:
                progress(stop - start)
        position = replay.last
    return largest


def _pieces(context: Context, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """As `chunks`, but cut where documents end too, as when they were read: what rounds alike is equal."""
    ends = {document.stop for document in context.documents if start < document.stop < stop}
    for first, last in itertools.pairwise(sorted({start, *ends, stop})):
        yield from chunks(first, last)


def _tolerated_share(latents: LatentFormat, dtype: torch.dtype) -> float:
    """How far a stored number may be from the model's, as a part of the largest number of its token.

    Storing rounds to half a unit. Where a text was read in other pieces than now, as when it was written token by
    token, or on another machine, every operation may round differently too: the square root of one rounding error is
    more than that makes of it, and far less than another number.
    """
    if isinstance(latents, IntegerLatents):
        stored = 0.5 / (2 ** (latents.bits - 1) - 1) + torch.finfo(torch.float16).eps
    else:
        assert isinstance(latents, FloatLatents)
        stored = torch.finfo(latents.dtype).eps / 2
    return stored + math.sqrt(torch.finfo(dtype).eps)


def _excess(ours: Tensor, stored: Tensor, share: float) -> Tensor:
    """(T, R): differences as parts of those that are tolerated; infinite where a number is none."""
    # Scales of integers are fp16 numbers: below its smallest one, latents become zero.
    floor = 127 * torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    tolerated = share * ours.abs().amax(-1, keepdim=True) + floor
    return ((ours - stored).abs() / tolerated).nan_to_num(nan=math.inf, posinf=math.inf)


def _check(excess: Tensor, first: int, source: str) -> None:
    wrong = (excess > 1).any(-1).nonzero().flatten() + first
    if len(wrong):
        tokens = f"token {wrong[0]}" if len(wrong) == 1 else f"{len(wrong)} tokens from {wrong[0]} to {wrong[-1]}"
        raise UserError(
            f"{source} is damaged: the latents of {tokens} are not what the model makes of the text; read it again"
        )
