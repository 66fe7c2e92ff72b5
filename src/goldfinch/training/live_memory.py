"""Measuring how much memory a pass through a model needs, on fake tensors, whatever the model's size."""

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from goldfinch.config import ModelConfig
from goldfinch.model import Decoder
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.parallel.parallelize import apply_block_plan


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are created while it is active, until they are freed.

    Args:
        before: tensors that exist already; views of them are not counted.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        """Bytes."""
        self.peak = 0
        """The maximum of `now`."""
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in before)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that one micro-batch needs besides weights, gradients and optimizer state."""

    kept: int
    """Kept for the backward pass at the end of the forward pass."""
    working: int
    """On top of that at the peak: logits, intermediate gradients, a block that is recomputed."""


def measure_activations(
    config: ModelConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    sequence_length: int,
    *,
    autocast: bool,
    weights: torch.dtype = torch.float32,
    activation_checkpointing: bool = False,
    document_resets: bool = False,
) -> Activations:
    """Run forward and backward pass on fake tensors, and measure the memory.

    If all layers are trained, at most two of a kind in a row are run, and the others counted like the first. Everything
    is as on a CPU: GPU kernels may keep a little more or less, and autocast runs norms in fp32 there.

    Args:
        config: the model.
        optimizer: says which parameters are frozen.
        batch_size: sequences per forward pass.
        sequence_length: tokens per sequence.
        autocast: matrix products in bf16; bf16 copies of fp32 weights then count as activations.
        weights: their dtype; bf16 if they are gathered in bf16 from several processes.
        activation_checkpointing: as in `apply_block_plan`.
        document_resets: documents of a window are kept apart, which takes attention masks.
    """
    freezes = not all(multiplier for _, multiplier in optimizer.parsed_multipliers())
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(config.time_mixes)]
    measured_of_run = [length if freezes else min(length, 2) for _, length in runs]
    plan = tuple(kind for (kind, _), length in zip(runs, measured_of_run, strict=True) for _ in range(length))
    with FakeTensorMode():
        model = decoder_without_content(dataclasses.replace(config, time_mixes=plan), weights)
        if freezes:
            build_optimizer(model, optimizer)
        ids = torch.zeros(batch_size, sequence_length + 1, dtype=torch.int64)
        kept, peak, starts = watch_pass(model, ids, autocast, activation_checkpointing, 0 if document_resets else None)
    more = first = 0
    for (_, length), measured in zip(runs, measured_of_run, strict=True):
        if length > measured:
            more += (length - measured) * (starts[first + 1] - starts[first])
        first += measured
    return Activations(kept=kept + more, working=peak - kept)


def decoder_without_content(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    """A model on fake CPU tensors of the current FakeTensorMode."""
    model = Decoder.on_meta(config)
    weights = {name: torch.empty(p.shape, dtype=dtype, device="cpu") for name, p in model.named_parameters()}
    model.load_state_dict(weights, assign=True)
    return model


def watch_pass(
    model: Decoder, windows: Tensor, autocast: bool, activation_checkpointing: bool, reset_after: int | None = None
) -> tuple[int, int, list[int]]:
    """Bytes that the forward pass keeps, the peak of both passes, and the bytes at the start of each block.

    Args:
        model: real or fake, on the CPU. Its gradients are dropped as they come: they are not activations.
        windows: (B, T + 1).
        autocast: to bf16.
        activation_checkpointing: as in `apply_block_plan`.
        reset_after: as in `next_token_loss`.
    """
    apply_block_plan(model, activation_checkpointing=activation_checkpointing)
    starts: list[int] = []

    def before(module: nn.Module, inputs: Any) -> None:
        torch.clear_autocast_cache()  # copies of weights that nothing keeps
        starts.append(memory.now)

    def without_state(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output[0], None  # all layers' states are gone before the pass ends

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [block.register_forward_pre_hook(before) for block in model.blocks]
    hooks += [block.register_forward_hook(without_state) for block in model.blocks]
    hooks += [p.register_post_accumulate_grad_hook(drop) for p in model.parameters() if p.requires_grad]
    try:
        with LiveMemory([windows, *model.parameters()]) as memory:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = next_token_loss(model, windows, reset_after)
            kept = memory.now
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return kept, memory.peak, starts
