"""How a run computes: activation checkpointing, compiled blocks, weights sharded over processes.

The model knows nothing of training; this is applied from outside. Modules and parameters keep their names, so weights
and checkpoints are the same either way.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from goldfinch.errors import UserError
from goldfinch.mixers import KeyValueSource
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.ops.wkv6 import make_traceable
from goldfinch.state import BlockState

BACKEND = "inductor"
"""Backend of torch.compile."""

Forward = Callable[..., tuple[Tensor, BlockState]]


def apply_block_plan(model: Decoder, *, activation_checkpointing: bool = False, compiled: bool = False) -> None:
    """Change how `model`'s blocks run while gradients are recorded; validation and samples are unaffected.

    Blocks that are frozen together with everything below them record nothing, whatever the plan.

    Args:
        model: its blocks are changed in place; a second call replaces the first one's plan.
        activation_checkpointing: keep only each block's inputs, and run it again for its gradients. Losses and
            gradients are bit-identical.
        compiled: run blocks through torch.compile; each kind is compiled once for all its layers and one input shape.

    Raises:
        UserError: in the first forward pass, if torch.compile does not work here.
    """
    forward = _compile(Block.forward) if compiled else Block.forward
    for block in model.blocks:
        assert isinstance(block, Block)
        block.forward = _planned(block, forward, activation_checkpointing)  # type: ignore[method-assign]  # a plan, not a subclass


def _planned(block: Block, forward: Forward, activation_checkpointing: bool) -> Forward:
    def run(
        x: Tensor,
        state: BlockState | None = None,
        cache: KeyValueSource | Sequence[KeyValueSource] | None = None,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, BlockState]:
        # Without gradients there is nothing to save, and every length of text would be compiled.
        if not torch.is_grad_enabled():
            return Block.forward(block, x, state, cache, document_starts)
        if cache is None and not x.requires_grad and not any(weight.requires_grad for weight in block.parameters()):
            # Frozen, and nothing below is trained: back-propagation ends above it.
            with torch.no_grad():
                return forward(block, x, state, cache, document_starts)
        if activation_checkpointing:
            # Blocks draw no random numbers.
            return checkpoint(
                forward, block, x, state, cache, document_starts, use_reentrant=False, preserve_rng_state=False
            )
        return forward(block, x, state, cache, document_starts)

    return run


def _compile(forward: Forward) -> Forward:
    """Compile the function rather than each module: blocks of the same kind then share the code."""
    # Imported here because it takes two seconds.
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

    make_traceable()
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend=BACKEND)

    def run(*args: Any) -> tuple[Tensor, BlockState]:
        try:
            return compiled(*args)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise UserError(f"torch.compile does not work here ({reason}): train with --no-compile") from error
        except FailOnRecompileLimitHit as error:
            raise UserError(
                "this process has compiled as many variants of the blocks as torch.compile allows: call "
                "torch.compiler.reset() before the next run, or train with compile=False"
            ) from error

    return run


def shard(model: Decoder, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard the parameters over the processes of `mesh` (FSDP2): each keeps its rows, and gathers one block at a time.

    Args:
        model: on the meta device, or with the same weights in each process, after `apply_block_plan`.
        mesh: from `Processes.mesh`; with a dimension "replicate" (HSDP), each of its groups holds the whole model.
        dtype: of matrix products. Weights are gathered in it; stored shards and reduced gradients are fp32.
    """
    gathered = None if dtype == torch.float32 else dtype
    # Activations keep the dtypes of autocast, as in a run of one process: the residual stream is fp32.
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # The loss calls this; `head`, whose weight the loss uses directly, is then gathered too.
    register_fsdp_forward_method(model, "hidden")


def synchronize_gradients(model: nn.Module, enabled: bool) -> None:
    """Set whether the next backward pass averages gradients over the processes and reshards the weights.

    Only the last backward pass of a step needs it: before, gradients accumulate where they are.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        model.set_reshard_after_backward(enabled)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward pass leaves behind."""
    if isinstance(model, FSDPModule):
        model.reshard()


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights on the CPU of process 0; an empty dict in the other processes."""
    if not isinstance(model, FSDPModule):
        return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], weights)


def gather_model(model: Decoder, device: torch.device) -> Decoder | None:
    """The unsharded model on `device` in process 0, None in the others; `model` itself if it is not sharded."""
    if not isinstance(model, FSDPModule):
        return model
    weights = full_weights(model)
    if not weights:
        return None
    whole = Decoder.on_meta(model.config)
    whole.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()}, assign=True)
    return whole


def distribute_weights(model: Decoder, weights: dict[str, Any]) -> None:
    """The inverse of `full_weights`: process 0 gives all weights, the others an empty dict."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
