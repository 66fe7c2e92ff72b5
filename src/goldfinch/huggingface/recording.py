"""Hidden states of each layer, and attention weights of the GOLD layers, of one forward pass."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from goldfinch.mixers import Gold, KeyValueSource
from goldfinch.model import Decoder
from goldfinch.ops.attention import KeyValueBlock


class Recorder:
    """Records what passes through a decoder's layers within a `with` block.

    The hooks are there only as long: while there are any, our engine runs each layer in PyTorch, which is slower.

    Args:
        decoder: to watch.
        hidden: which of the input of the first layer and the output of each to record: all, none, or those of these
            numbers, negative ones from the end.
        attentions: whether to record the attention weights of each GOLD layer.
    """

    def __init__(self, decoder: Decoder, *, hidden: bool | Sequence[int], attentions: bool) -> None:
        self._decoder = decoder
        self._count = count = len(decoder.blocks) + 1
        numbers = range(count if hidden else 0) if isinstance(hidden, bool) else {number % count for number in hidden}
        self._hidden: dict[int, list[Tensor]] = {number: [] for number in sorted(numbers)}
        self._golds = [m for block in decoder.blocks if isinstance(m := block.time_mix, Gold)] if attentions else []
        self._attentions: list[list[Tensor]] = [[] for _ in self._golds]
        self._removals: list[Callable[[], None]] = []

    @property
    def is_active(self) -> bool:
        """Whether there is anything to record."""
        return bool(self._hidden or self._golds)

    def __enter__(self) -> Self:
        for number, to in self._hidden.items():

            def before(_: Any, arguments: tuple[Tensor, Any], to: list[Tensor] = to) -> None:
                to.append(arguments[0])

            def after(_: Any, __: Any, output: tuple[Tensor, Any], to: list[Tensor] = to) -> None:
                to.append(output[0])

            hook = (
                self._decoder.blocks[number - 1].register_forward_hook(after)
                if number
                else self._decoder.blocks[0].register_forward_pre_hook(before)
            )
            self._removals.append(hook.remove)
        for gold, weights in zip(self._golds, self._attentions, strict=True):
            self._removals.append(self._record_attention(gold, weights))
        return self

    def __exit__(self, *_: object) -> None:
        while self._removals:
            self._removals.pop()()

    @staticmethod
    def _record_attention(gold: Gold, to: list[Tensor]) -> Callable[[], None]:
        attend = gold.attend

        def attend_and_record(q: Tensor, cache: KeyValueSource, document_starts: Tensor | None = None) -> Tensor:
            # What attends to the rows of the identity are the weights themselves.
            starts = document_starts
            if starts is None:  # also means: not in C++, whose values are as wide as keys
                starts = torch.zeros(len(q), len(cache), dtype=torch.bool, device=q.device)
            weights = attend(q, _Identity(cache), starts).unflatten(-1, (gold.num_heads, -1)).transpose(1, 2)
            to.append(weights)
            # From the weights, so that a gradient can be had with respect to them.
            values = torch.cat([block.of_each_key() for block in cache.keys_values(gold)], dim=2)
            return (weights @ values).transpose(1, 2).flatten(2)

        gold.attend = attend_and_record  # type: ignore[method-assign, assignment]  # for a moment, as a hook

        def remove() -> None:
            del gold.attend

        return remove

    def take_hidden(self, length: int) -> list[Tensor]:
        """What was recorded since the last call: of each recorded layer, (B, length, D), of the last tokens."""
        taken = [_last(parts, 1, length) for parts in self._hidden.values() if parts]
        for parts in self._hidden.values():
            parts.clear()
        return taken

    def of_all_layers(self, states: Iterable[Tensor]) -> list[Tensor | None]:
        """`take_hidden`'s with None for layers that are not recorded; empty if none is."""
        by_number = dict(zip(self._hidden, states, strict=True))
        return [by_number.get(number) for number in range(self._count)] if by_number else []

    def take_attentions(self, length: int) -> list[Tensor]:
        """The same of each GOLD layer: (B, H, length, S)."""
        taken = [_last(parts, 2, length) for parts in self._attentions if parts]
        for parts in self._attentions:
            parts.clear()
        return taken


def _last(parts: list[Tensor], dim: int, length: int) -> Tensor:
    """The end of these parts one behind the other; if that is all of one part, this very tensor."""
    values = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return values if values.shape[dim] == length else values.narrow(dim, values.shape[dim] - length, length)


class _Identity:
    """The keys of a source, and for values the rows of the identity."""

    def __init__(self, source: KeyValueSource) -> None:
        self._source = source

    @property
    def query_positions(self) -> Tensor | None:
        return self._source.query_positions

    def __len__(self) -> int:
        return len(self._source)

    def keys_values(self, layer: Gold) -> Iterable[KeyValueBlock]:
        keys = torch.cat([block.keys for block in self._source.keys_values(layer)], dim=2)
        identity = torch.eye(len(self), dtype=keys.dtype, device=keys.device)
        return (KeyValueBlock(keys, identity.expand(*keys.shape[:2], *identity.shape)),)
