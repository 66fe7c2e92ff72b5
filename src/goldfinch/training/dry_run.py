"""What a run would take - memory, FLOPs, days - before there is data or a GPU for it."""

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
    """What a run would take. Bytes are those of one device, the one that holds most."""

    steps: int
    """Optimizer steps."""
    tokens_per_step: int
    """Over all devices."""
    flops_per_step: int
    """Over all devices, forward and backward, as MFU counts them."""
    days: float
    """On the cluster, at its utilisation."""
    parameters: dict[str, int]
    """By part of the model."""
    micro_batch_size: int
    """Sequences that go through the model at once on one device."""
    micro_batches: int
    """How often, in each step."""
    fixed_bytes: dict[str, int]
    """Weights, gradients, optimizer and what their distribution needs, by part."""
    activations: Activations
    """Of one micro-batch, all kept."""
    recomputed_activations: Activations
    """The same with activation checkpointing."""

    def total_bytes(self, activation_checkpointing: bool) -> int:
        """Of one device; what CUDA, NCCL and fragmented memory take comes on top."""
        activations = self.recomputed_activations if activation_checkpointing else self.activations
        return sum(self.fixed_bytes.values()) + activations.kept + activations.working


def dry_run(config: TrainConfig, cluster: Cluster) -> DryRun:
    """Compute what a run would take; nothing large is allocated, nothing is read.

    The dtype "auto" counts as bfloat16, as on GPUs.

    Raises:
        UserError: the batch cannot be shared out among the devices.
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
    """How many parameters each part of the model has."""

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
    """Bytes on one device that do not depend on the size of a micro-batch, by part: FSDP2 as in `parallel.parallelize`.

    Args:
        model: fp32 weights; what requires gradients is trained.
        optimizer: of the model.
        processes: one for each device.
        micro_batches: of a step on one device; with several, weights stay gathered between them, and gradients are
            added up before they are spread.
        bf16: whether matrix products are.
        num_replicas: groups of processes that each hold the whole model.
    """
    holders = processes // num_replicas

    def numbers(tensor: Tensor) -> int:
        """The largest part of a tensor that one process holds: whole rows."""
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
        sizes["gradients being spread"] = (itemsize + _FP32) * max(outside, *blocks)
    else:
        sizes["gathered weights"] = itemsize * (outside + sum(blocks))
        sizes["gradients being spread"] = _FP32 * sum(p.numel() for p in trained)
    return sizes


def _units(model: Decoder) -> list[int]:
    """Numbers of parameters that are gathered together: those outside the blocks, then each block's."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    return [sum(p.numel() for p in model.parameters()) - sum(blocks), *blocks]


def optimizer_bytes(optimizer: Optimizer, numbers: Callable[[Tensor], int] = Tensor.numel) -> int:
    """Bytes of the state after a step, in fp32: two numbers a parameter in AdamW's groups and a counter for each
    tensor, one number in Muon's.

    Args:
        optimizer: of `build_optimizer`.
        numbers: of a parameter that this process holds.
    """
    total = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            total += 2 * numbers(parameter) + 1 if "betas" in group else numbers(parameter)
    return _FP32 * total
