"""Gradient checkpointing as transformers does it: layers that are run again for their gradients."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from goldfinch.mixers import KeyValueSource, SharedKeys
from goldfinch.model import Decoder
from goldfinch.state import BlockState


class CheckpointedDecoder(Decoder):
    """A decoder whose layers are run again for their gradients (gradient checkpointing)."""

    run_again: Callable[..., Any]

    @classmethod
    def of(cls, decoder: Decoder, run_again: Callable[..., Any]) -> "CheckpointedDecoder":
        """The same layers; `run_again` is a form of `torch.utils.checkpoint.checkpoint`."""
        other = cls.of_parts(decoder.config, **dict(decoder.named_children()) | {"token_cat": decoder.token_cat})
        other.run_again = run_again
        return other

    def _run_block(
        self,
        block: nn.Module,
        x: Tensor,
        state: BlockState | None,
        cache: KeyValueSource | Sequence[KeyValueSource] | None,
        document_starts: Tensor | None,
    ) -> tuple[Tensor, BlockState]:
        if not isinstance(cache, SharedKeys):
            return self.run_again(block, x, state, cache, document_starts)

        # Checkpointing follows gradients through tensors that are arguments only.
        def run(x: Tensor, keys: Tensor, embeddings: Tensor) -> tuple[Tensor, BlockState]:
            shared = dataclasses.replace(cache, keys=keys, embeddings=embeddings)
            return block(x, state, shared, document_starts)

        return self.run_again(run, x, cache.keys, cache.embeddings)
