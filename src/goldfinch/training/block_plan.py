"""How a run computes each block: recomputing its activations, compiled.

The model knows nothing of training. What a run does to every block is applied here, from outside, by putting another
`forward` before the block's own; modules and parameters keep their names, so weights and checkpoints fit either way.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from goldfinch.errors import UserError
from goldfinch.mixers import KeyValueSource
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.ops.wkv6 import native
from goldfinch.state import BlockState

BACKEND = "inductor"
"""Of torch.compile."""

Forward = Callable[..., tuple[Tensor, BlockState]]


def apply_block_plan(model: Decoder, *, activation_checkpointing: bool = False, compiled: bool = False) -> None:
    """Change how `model`'s blocks run while gradients are recorded; validation and samples run as before.

    Args:
        model: its blocks are changed in place; a second call replaces the first one's plan.
        activation_checkpointing: keep each block's inputs only, and run it again when its gradients are due. Losses
            and gradients stay the same to the bit.
        compiled: run blocks through torch.compile, each kind compiled once for all its layers, for one shape of
            input. Compiled in an earlier plan is forgotten, by all models of the process.

    Raises:
        UserError: from the first forward pass, where torch.compile's backend does not work here.
    """
    forward = _compile(Block.forward) if compiled else Block.forward
    for block in model.blocks:
        assert isinstance(block, Block)
        block.forward = _planned(block, forward, activation_checkpointing)  # type: ignore[method-assign]  # a plan, not a subclass


def _planned(block: Block, forward: Forward, activation_checkpointing: bool) -> Forward:
    def run(
        x: Tensor, state: BlockState | None = None, memory: KeyValueSource | None = None
    ) -> tuple[Tensor, BlockState]:
        # Without gradients there is nothing to save; and texts of any length would each be compiled.
        if not torch.is_grad_enabled():
            return Block.forward(block, x, state, memory)
        if activation_checkpointing:
            # Blocks draw no random numbers.
            return checkpoint(forward, block, x, state, memory, use_reentrant=False, preserve_rng_state=False)
        return forward(block, x, state, memory)

    return run


def _compile(forward: Forward) -> Forward:
    """The function rather than each module: torch.compile then reuses its code for every block of the same kind."""
    # Late: it takes two seconds.
    from torch._dynamo.exc import BackendCompilerFailed

    # Variants of one function are counted over the whole process, and from the ninth on refused.
    torch.compiler.reset()
    # What it does, looking for a compiler and building, cannot be traced.
    torch.compiler.assume_constant_result(native.available)
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend=BACKEND)

    def run(*args: Any) -> tuple[Tensor, BlockState]:
        try:
            return compiled(*args)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise UserError(f"torch.compile does not work here ({reason}): train with --no-compile") from error

    return run
