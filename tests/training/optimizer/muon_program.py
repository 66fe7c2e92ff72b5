"""One of several processes: Muon on a model sharded over them, against Muon on the whole one."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from goldfinch.config import ModelConfig
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate


def main(meeting: str, world_size: int, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", world_size=world_size, rank=rank)
    plan = ("finch_c2", "gold")
    # 5 latents: rows that two processes cannot share evenly.
    config = ModelConfig(vocab_size=41, width=80, head_size=16, time_mixes=plan, latent_ratio=16, channel_width=104)
    models = [Decoder(config) for _ in range(2)]
    for model in models:
        initialize(model, 0)
    whole, sharded = models
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    settings = OptimizerConfig(kind="muon", weight_decay=0.1)
    optimizers = [build_optimizer(model, settings) for model in models]
    for step in range(2):
        for name, parameter in whole.named_parameters():
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            parameter.grad = gradient
            theirs = sharded.get_parameter(name)
            assert isinstance(theirs, DTensor)
            theirs.grad = distribute_tensor(gradient, theirs.device_mesh, theirs.placements)
        for optimizer in optimizers:
            set_learning_rate(optimizer, 1e-2)
            optimizer.step()
    for name, parameter in whole.named_parameters():
        theirs = sharded.get_parameter(name)
        torch.testing.assert_close(
            theirs.full_tensor(), parameter, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        for state in optimizers[1].state[theirs].values():
            assert state.dim() == 0 or state.to_local().numel() == theirs.to_local().numel(), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
