"""AdamW with explicit parameter groups (SPEC 8)."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from goldfinch.errors import UserError
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
            groups[_group(module, name)][f"{path}.{name}"] = parameter
    return groups


def _group(module: nn.Module, name: str) -> Group:
    # A sharded module is of a class of its own, made from the module's.
    for cls in type(module).__mro__:
        if (cls, name) in _GROUPS:
            return _GROUPS[cls, name]
    raise KeyError((type(module), name))


def rate_multipliers(names: Iterable[str], config: OptimizerConfig) -> dict[str, float]:
    """What `config.rates` makes of each parameter's learning rate; 0 for what is frozen.

    Raises:
        UserError: a pattern that matches no parameter.
    """
    multipliers = dict.fromkeys(names, 1.0)
    for pattern, multiplier in config.rate_multipliers():
        matching = [name for name in multipliers if fnmatchcase(name, pattern)]
        if not matching:
            (nearest,) = difflib.get_close_matches(pattern, [*multipliers], n=1, cutoff=0)
            raise UserError(f"optimizer.rates: no parameter matches {pattern!r}; the nearest is {nearest}")
        multipliers.update(dict.fromkeys(matching, multiplier))
    return multipliers


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups; `set_learning_rate` gives each step its rate.

    Parameters that `config.rates` freezes stop requiring gradients and are in no group.

    Raises:
        UserError: `config.rates` match nothing, or freeze everything.
    """
    groups = parameter_groups(model)
    multipliers = rate_multipliers([name for group in groups.values() for name in group], config)
    split: dict[tuple[Group, float], list[nn.Parameter]] = {}
    for group, parameters in groups.items():
        for name, parameter in parameters.items():
            parameter.requires_grad_(multipliers[name] > 0)
            if multipliers[name]:
                split.setdefault((group, multipliers[name]), []).append(parameter)
    if not split:
        raise UserError("optimizer.rates freeze every parameter: nothing is left to train")
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if group == "matrix" else 0.0,
                "rate_multiplier": multiplier * (config.decay_rate_multiplier if group == "decay" else 1.0),
            }
            for (group, multiplier), parameters in split.items()
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
