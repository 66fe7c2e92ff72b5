"""Building the model of a run: initial weights, how its blocks run, and sharding over the processes."""

import torch
from torch import Tensor

from goldfinch.model import Decoder
from goldfinch.training.config import TrainConfig
from goldfinch.training.initial_weights import set_initial_weights
from goldfinch.training.parallel.parallelize import apply_block_plan, distribute_weights, shard
from goldfinch.training.parallel.processes import Processes


def build_model(
    config: TrainConfig, processes: Processes, device: torch.device, dtype: torch.dtype, initialized: bool
) -> Decoder:
    """The model of a run, with its block plan applied, sharded over the processes.

    Args:
        config: the settings.
        processes: all of them build it together.
        device: of this process.
        dtype: of matrix products.
        initialized: whether to set the initial weights of a new run; otherwise a checkpoint sets them.
    """
    model = _empty_model(config)
    apply_block_plan(model, activation_checkpointing=config.activation_checkpointing, compiled=config.compile)
    mesh = processes.mesh(device, config.num_replicas)
    if mesh is not None:
        shard(model, mesh, dtype)
    model.to_empty(device=device)
    if initialized and mesh is None:
        set_initial_weights(model, config)
    elif initialized:
        with processes.fail_together():
            weights = _initial_weights(config) if processes.is_main else {}
        distribute_weights(model, weights)
    return model


def _empty_model(config: TrainConfig) -> Decoder:
    return Decoder.on_meta(config.model)


def _initial_weights(config: TrainConfig) -> dict[str, Tensor]:
    model = _empty_model(config).to_empty(device="cpu")
    set_initial_weights(model, config)
    return dict(model.state_dict())
