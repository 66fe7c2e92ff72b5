"""The optimizer and its explicit parameter groups (SPEC 8)."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from goldfinch.errors import UserError
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.muon import Combined, Muon

Group = Literal["matrix", "vector", "decay"]
# Roles of the parameters of PyTorch's modules; ours declare them (`parameter_roles`).
_TORCH_ROLES: dict[type[nn.Module], dict[str, Group]] = {
    nn.Linear: {"weight": "matrix"},
    nn.Embedding: {"weight": "matrix"},
    nn.LayerNorm: {"weight": "vector", "bias": "vector"},
    nn.GroupNorm: {"weight": "vector", "bias": "vector"},
}

# Muon is for matrices between hidden states. Embedding and head, whose rows are tokens, use AdamW.
_INSIDE = ("blocks.", "token_cat.")
# Updates as large as AdamW's (arXiv 2502.16982), whatever a matrix's shape.
_ADJUST = "match_rms_adamw"


def parameter_groups(model: nn.Module) -> dict[Group, dict[str, nn.Parameter]]:
    """Every parameter by its full name, in exactly one group.

    "matrix" has weight decay; "decay" (lambda_d) has its own learning rate; "vector" is the rest: low-rank parts,
    mixing vectors, norms, the bonus.

    Raises:
        KeyError: a module does not declare the role of a parameter.
    """
    groups: dict[Group, dict[str, nn.Parameter]] = {"matrix": {}, "vector": {}, "decay": {}}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            groups[_group(module, name)][f"{path}.{name}"] = parameter
    return groups


def _group(module: nn.Module, name: str) -> Group:
    # A sharded module has a class of its own, derived from the module's.
    for cls in type(module).__mro__:
        roles = _TORCH_ROLES.get(cls) or getattr(cls, "parameter_roles", {})
        if name in roles:
            return roles[name]
    raise KeyError(f"{type(module).__name__}.{name} has no role: add it to parameter_roles")


def resolve_multipliers(names: Iterable[str], config: OptimizerConfig) -> dict[str, float]:
    """Parameter name -> multiplier of its learning rate, from `config.learning_rate_multipliers`; 0 is frozen.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    multipliers = dict.fromkeys(names, 1.0)
    for pattern, multiplier in config.parsed_multipliers():
        matching = [name for name in multipliers if fnmatchcase(name, pattern)]
        if not matching:
            (nearest,) = difflib.get_close_matches(pattern, [*multipliers], n=1, cutoff=0)
            raise UserError(
                f"optimizer.learning_rate_multipliers: no parameter matches {pattern!r}; the nearest is {nearest}"
            )
        multipliers.update(dict.fromkeys(matching, multiplier))
    if not any(multipliers.values()):
        raise UserError("optimizer.learning_rate_multipliers freeze every parameter: nothing is left to train")
    return multipliers


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer of `config.kind`, with named groups; `set_learning_rate` sets the learning rate of each step.

    Parameters that `config.learning_rate_multipliers` freezes no longer require gradients and are in no group.

    Raises:
        UserError: `config.learning_rate_multipliers` match nothing, or freeze everything.
    """
    adamw: dict[str, dict[str, Any]] = {}
    muon: dict[str, dict[str, Any]] = {}
    groups = parameter_groups(model)
    multipliers = resolve_multipliers([name for group in groups.values() for name in group], config)
    for group, parameters in groups.items():
        for name, parameter in parameters.items():
            multiplier = multipliers[name]
            parameter.requires_grad_(multiplier > 0)
            if not multiplier:
                continue
            by_muon = config.kind == "muon" and group == "matrix" and name.startswith(_INSIDE)
            label = ("muon" if by_muon else group) + ("" if multiplier == 1 else f" x{multiplier:g}")
            new = {
                "name": label,
                "params": [],
                "weight_decay": config.weight_decay if group == "matrix" else 0.0,
                "rate_multiplier": multiplier * (config.decay_learning_rate_multiplier if group == "decay" else 1.0),
            }
            (muon if by_muon else adamw).setdefault(label, new)["params"].append(parameter)
    parts: list[Optimizer] = []
    if adamw:
        betas = config.beta1, config.beta2
        parts.append(torch.optim.AdamW([*adamw.values()], config.learning_rate, betas, config.eps, fused=True))
    if muon:
        parts.append(Muon([*muon.values()], config.learning_rate, momentum=config.momentum, adjust_lr_fn=_ADJUST))
    return parts[0] if len(parts) == 1 else Combined(*parts)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_multiplier"]
