"""Gradient checkpointing as transformers does it: layers that are run again for their gradients."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from goldfinch.inference import cpu_decode
from goldfinch.mixers import KeyValueSource, SharedKeys
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.state import BlockState


class GoldFinchBlock(GradientCheckpointingLayer, Block):
    """A `Block` that transformers can run again for its gradients."""

    def __call__(self, x: Tensor, *args: Any) -> tuple[Tensor, BlockState]:
        """Give the tensors in shared keys as arguments as well: checkpointing follows gradients only through these."""
        cache = args[1] if len(args) > 1 else None
        parts = (cache.keys, cache.embeddings) if isinstance(cache, SharedKeys) else ()
        return super().__call__(x, *args, *parts)

    def forward(
        self,
        x: Tensor,
        state: BlockState | None = None,
        cache: KeyValueSource | Sequence[KeyValueSource] | None = None,
        document_starts: Tensor | None = None,
        *parts: Tensor,
    ) -> tuple[Tensor, BlockState]:
        """As `Block.forward`; `parts` are the tensors in `cache`."""
        if parts and isinstance(cache, SharedKeys):
            cache = dataclasses.replace(cache, keys=parts[0], embeddings=parts[1])
        return Block.forward(self, x, state, cache, document_starts)


cpu_decode.KNOWN.add(GoldFinchBlock)


class GoldFinchDecoder(Decoder):
    """A `Decoder` of such layers."""

    block_type = GoldFinchBlock
