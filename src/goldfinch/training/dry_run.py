"""Estimating what a run would take (memory, FLOPs, days) without data or a GPU."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.optim import Optimizer

from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.model.accounting import account
from goldfinch.training.config import Cluster, TrainConfig
from goldfinch.training.live_memory import Activations, decoder_without_content, measure_activations
from goldfinch.training.optimizer.groups import build_optimizer

_BF16, _FP32 = torch.bfloat16.itemsize, torch.float32.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would take. Bytes are per device, of the one that holds most."""

    steps: int
    """Optimizer steps."""
    tokens_per_step: int
    """Tokens per step, over all devices."""
    flops_per_step: int
    """FLOPs of forward and backward, over all devices, as in MFU."""
    days: float
    """Duration on the cluster at its utilisation."""
    parameters: dict[str, int]
    """Parameters by part of the model."""
    micro_batch_size: int
    """Sequences per forward pass on one device."""
    micro_batches: int
    """Micro-batches per step."""
    fixed_bytes: dict[str, int]
    """Bytes of weights, gradients, optimizer and sharding buffers, by part."""
    activations: Activations
    """Activations of one micro-batch, without checkpointing."""
    recomputed_activations: Activations
    """Activations with activation checkpointing."""

    def total_bytes(self, activation_checkpointing: bool) -> int:
        """Bytes on one device, without what CUDA, NCCL and fragmentation add."""
        activations = self.recomputed_activations if activation_checkpointing else self.activations
        return sum(self.fixed_bytes.values()) + activations.kept + activations.working


def dry_run(config: TrainConfig, cluster: Cluster) -> DryRun:
    """Compute what a run would take; nothing large is allocated, nothing is read.

    The dtype "auto" counts as bfloat16, as on GPUs.

    Raises:
        UserError: the batch cannot be divided among the devices.
    """
    share, left = divmod(config.batch_size, cluster.num_gpus)
    if left:
        raise UserError(
            f"a batch of {config.batch_size} sequences cannot be shared by {cluster.num_gpus} GPUs: set --num-gpus"
        )
    if cluster.num_gpus % config.num_replicas:
        raise UserError(f"num_replicas {config.num_replicas} must divide the number of GPUs, {cluster.num_gpus}")
    micro = min(config.micro_batch_size or share, share)
    micro_batches = math.ceil(share / micro)
    tokens_per_step = config.batch_size * config.sequence_length
    windows = max(1, (cluster.tokens - 1) // config.sequence_length)
    steps = config.steps or max(1, math.ceil(config.epochs * windows / config.batch_size))
    flops = account(config.model, config.sequence_length).training_flops_per_token * tokens_per_step
    seconds = steps * flops / (cluster.num_gpus * cluster.gpu_tflops * 1e12 * cluster.utilisation)

    bf16 = config.dtype != "float32"

    def activations(activation_checkpointing: bool) -> Activations:
        return measure_activations(
            config.model,
            config.optimizer,
            micro,
            config.sequence_length,
            autocast=bf16,
            weights=torch.bfloat16 if bf16 and cluster.num_gpus > 1 else torch.float32,
            activation_checkpointing=activation_checkpointing,
            document_resets=config.document_resets,
        )

    with FakeTensorMode():
        model = decoder_without_content(config.model, torch.float32)
        optimizer = build_optimizer(model, config.optimizer)
    return DryRun(
        steps=steps,
        tokens_per_step=tokens_per_step,
        flops_per_step=flops,
        days=seconds / 86400,
        parameters=parameters_by_part(model),
        micro_batch_size=micro,
        micro_batches=micro_batches,
        fixed_bytes=fixed_bytes(model, optimizer, cluster.num_gpus, micro_batches, bf16, config.num_replicas),
        activations=activations(False),
        recomputed_activations=activations(True),
    )


def parameters_by_part(model: Decoder) -> dict[str, int]:
    """Number of parameters of each part of the model."""

    def count(name: str) -> int:
        part = getattr(model, name)
        return sum(p.numel() for p in part.parameters()) if part is not None else 0

    parts = {"embedding": count("embedding"), "head": count("head")}
    layer = 0
    for kind, run in itertools.groupby(model.config.time_mixes):
        length = len(list(run))
        blocks = model.blocks[layer : layer + length]
        parts[f"{length} {kind} blocks"] = sum(p.numel() for p in blocks.parameters())
        layer += length
    parts["TokenCat"] = count("token_cat")
    parts["norms outside the blocks"] = count("embedding_norm") + count("output_norm")
    return {name: number for name, number in parts.items() if number}


def fixed_bytes(
    model: Decoder, optimizer: Optimizer, processes: int, micro_batches: int, bf16: bool, num_replicas: int = 1
) -> dict[str, int]:
    """Bytes on one device that do not depend on the micro-batch size, by part: FSDP2 as in `parallel.parallelize`.

    Args:
        model: with fp32 weights; parameters that require gradients are trained.
        optimizer: of the model.
        processes: one per device.
        micro_batches: per step on one device; with several, weights stay gathered between them, and gradients are
            accumulated before they are reduced.
        bf16: whether matrix products are in bf16.
        num_replicas: groups of processes that each hold the whole model.
    """
    holders = processes // num_replicas

    def numbers(tensor: Tensor) -> int:
        """The maximum number of elements that one process holds: whole rows."""
        rows, *rest = tensor.shape
        return math.ceil(rows / holders) * math.prod(rest)

    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = {
        "weights": _FP32 * sum(map(numbers, model.parameters())),
        "gradients": _FP32 * sum(map(numbers, trained)),
        "optimizer state": optimizer_bytes(optimizer, numbers),
    }
    if processes == 1:
        return sizes
    itemsize = _BF16 if bf16 else _FP32
    outside, *blocks = _units(model)
    if micro_batches == 1:
        # The next block is gathered while one is computed.
        sizes["gathered weights"] = itemsize * (outside + sum(sorted(blocks)[-2:]))
        sizes["gradients being reduced"] = (itemsize + _FP32) * max(outside, *blocks)
    else:
        sizes["gathered weights"] = itemsize * (outside + sum(blocks))
        sizes["gradients being reduced"] = _FP32 * sum(p.numel() for p in trained)
    return sizes


def _units(model: Decoder) -> list[int]:
    """Parameters that are gathered together: those outside the blocks, then those of each block."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    return [sum(p.numel() for p in model.parameters()) - sum(blocks), *blocks]


def optimizer_bytes(optimizer: Optimizer, numbers: Callable[[Tensor], int] = Tensor.numel) -> int:
    """Bytes of the optimizer state in fp32: AdamW has two numbers per parameter and a counter per tensor, Muon one.

    Args:
        optimizer: from `build_optimizer`.
        numbers: number of elements of a parameter that this process holds.
    """
    total = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            total += 2 * numbers(parameter) + 1 if "betas" in group else numbers(parameter)
    return _FP32 * total
