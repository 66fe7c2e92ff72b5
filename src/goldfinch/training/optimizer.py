"""AdamW with explicit parameter groups (SPEC 8)."""

from typing import Literal

import torch
from torch import nn

from goldfinch.layers.channel_mix import RwkvChannelMix
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.token_shift import DataDependentLerp
from goldfinch.mixers import Finch, FinchC2, Gold
from goldfinch.mixers.finch import Decay
from goldfinch.training.config import OptimizerConfig

Group = Literal["matrix", "vector", "decay"]
# (module, its own parameter) -> group. A parameter that is not listed is an error, never a default.
_GROUPS: dict[tuple[type[nn.Module], str], Group] = {
    (nn.Linear, "weight"): "matrix",
    (nn.Embedding, "weight"): "matrix",
    (nn.LayerNorm, "weight"): "vector",
    (nn.LayerNorm, "bias"): "vector",
    (nn.GroupNorm, "weight"): "vector",
    (nn.GroupNorm, "bias"): "vector",
    (LowRank, "a"): "vector",
    (LowRank, "b"): "vector",
    (DataDependentLerp, "mu_x"): "vector",
    (DataDependentLerp, "mu"): "vector",
    (RwkvChannelMix, "mu_r"): "vector",
    (RwkvChannelMix, "mu_k"): "vector",
    (Gold, "memory_mu"): "vector",
    (Gold, "mu_k"): "vector",
    (Gold, "mu_v"): "vector",
    (Finch, "bonus"): "vector",
    (FinchC2, "bonus"): "vector",
    (Decay, "base"): "decay",
}


def parameter_groups(model: nn.Module) -> dict[Group, dict[str, nn.Parameter]]:
    """Every parameter by its full name, in exactly one group.

    "matrix" has weight decay; "decay" (lambda_d) has a learning rate of its own; "vector" is the rest: loras, mixing
    vectors, norms, the bonus.

    Raises:
        KeyError: a kind of parameter that `_GROUPS` does not list.
    """
    groups: dict[Group, dict[str, nn.Parameter]] = {"matrix": {}, "vector": {}, "decay": {}}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            groups[_GROUPS[type(module), name]][f"{path}.{name}"] = parameter
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the three groups; `set_learning_rate` gives each step its rate."""
    groups = parameter_groups(model)
    return torch.optim.AdamW(
        [
            {
                "params": list(groups[group].values()),
                "weight_decay": config.weight_decay if group == "matrix" else 0.0,
                "rate_multiplier": config.decay_rate_multiplier if group == "decay" else 1.0,
            }
            for group in groups
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_multiplier"]
