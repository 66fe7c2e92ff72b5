"""Checkpoints: all that a run needs to go on exactly as if it had never stopped."""

import dataclasses
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from goldfinch.checkpoint.native import check_weights, write_safetensors
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.training.optimizer import parameter_groups

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random_state"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. The data order is a function of seed and step, so the step is the data position too."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Time spent training, over all starts."""


def save_checkpoint(run: Path, model: Decoder, optimizer: torch.optim.Optimizer, progress: Progress, keep: int) -> Path:
    """Write `checkpoints/step-N.safetensors`, then remove all but the newest `keep`."""
    tensors = {_MODEL + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, parameter in _trained(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = value
    tensors[_RANDOM] = torch.get_rng_state()
    path = run / FOLDER / f"step-{progress.step:08d}.safetensors"
    write_safetensors(path, tensors, {"progress": json.dumps(dataclasses.asdict(progress))})
    for old in list_checkpoints(run)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> Progress:
    """Put the checkpoint's weights, optimizer state and random state in place.

    Raises:
        UserError: the file is broken, or of another model.
    """
    try:
        tensors = load_file(path, str(model.head.weight.device))
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no whole checkpoint ({error}); remove it to resume from the one before") from error
    weights = _below(_MODEL, tensors)
    check_weights(path, weights, model)
    model.load_state_dict(weights)
    states = _below(_OPTIMIZER, tensors)
    for name, parameter in _trained(model).items():
        state = _below(f"{name}/", states)
        if state:
            optimizer.state[parameter] = state
    torch.set_rng_state(tensors[_RANDOM].cpu())
    return progress


def _trained(model: Decoder) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for group in parameter_groups(model).values() for name, parameter in group.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
