"""Hidden states of each layer, and attention weights of the GOLD layers, of one forward pass."""

from collections.abc import Callable, Iterable
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
        hidden: whether to record the input of the first layer and the output of each.
        attentions: whether to record the attention weights of each GOLD layer.
    """

    def __init__(self, decoder: Decoder, *, hidden: bool, attentions: bool) -> None:
        self._decoder = decoder
        self._hidden: list[list[Tensor]] = [[] for _ in range(len(decoder.blocks) + 1)] if hidden else []
        self._golds = [m for block in decoder.blocks if isinstance(m := block.time_mix, Gold)] if attentions else []
        self._attentions: list[list[Tensor]] = [[] for _ in self._golds]
        self._removals: list[Callable[[], None]] = []

    @property
    def is_active(self) -> bool:
        """Whether there is anything to record."""
        return bool(self._hidden or self._golds)

    def __enter__(self) -> Self:
        for number, block in enumerate(self._decoder.blocks if self._hidden else ()):
            if number == 0:
                before = block.register_forward_pre_hook(lambda _, arguments: self._hidden[0].append(arguments[0]))
                self._removals.append(before.remove)

            def after(_: Any, __: Any, output: tuple[Tensor, Any], to: list[Tensor] = self._hidden[number + 1]) -> None:
                to.append(output[0])

            self._removals.append(block.register_forward_hook(after).remove)
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
            weights = attend(q, _Identity(cache), starts)
            to.append(weights.unflatten(-1, (gold.num_heads, -1)).transpose(1, 2))
            return attend(q, cache, document_starts)

        gold.attend = attend_and_record  # type: ignore[method-assign, assignment]  # for a moment, as a hook

        def remove() -> None:
            del gold.attend

        return remove

    def take_hidden(self, length: int) -> list[Tensor]:
        """What was recorded since the last call: of each layer, (B, length, D), of the last tokens."""
        taken = [_last(torch.cat(parts, dim=1), 1, length) for parts in self._hidden if parts]
        for parts in self._hidden:
            parts.clear()
        return taken

    def take_attentions(self, length: int) -> list[Tensor]:
        """The same of each GOLD layer: (B, H, length, S)."""
        taken = [_last(torch.cat(parts, dim=2), 2, length) for parts in self._attentions if parts]
        for parts in self._attentions:
            parts.clear()
        return taken


def _last(values: Tensor, dim: int, length: int) -> Tensor:
    return values.narrow(dim, values.shape[dim] - length, length)


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
