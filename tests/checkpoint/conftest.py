"""The thirteen published model kinds with the golden formula's weights, as if read from a `.pth`."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from goldfinch.checkpoint.reference_config import model_config_from_reference
from goldfinch.config import ModelConfig

GOLDEN = Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("golden_weights_of_checkpoint_tests", GOLDEN / "weights.py")
_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_weights)


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint as published: the reference's config and its tensors by name, fp32."""

    values: dict
    config: ModelConfig
    tensors: dict[str, Tensor]


@functools.cache
def _published(kind: str) -> Published:
    with safe_open(GOLDEN / f"{kind}.safetensors", "pt") as file:
        metadata = file.metadata()
    values = json.loads(metadata["config"])
    tensors = {
        name: torch.from_numpy(_weights.weight(name, tuple(shape), values["seed"]))
        for name, shape in json.loads(metadata["parameter_shapes"]).items()
    }
    return Published(values, model_config_from_reference(values), tensors)


@pytest.fixture
def published():
    """kind -> Published; its tensors are shared by all tests: not to be changed."""
    return _published


@pytest.fixture(params=sorted(path.stem for path in GOLDEN.glob("*.safetensors")))
def golden(request) -> Published:
    """Every golden kind in turn."""
    return _published(request.param)


@pytest.fixture
def save_pth(tmp_path):
    """Write a `.pth` as `torch.save` does and give its path."""

    def save(content: object, name: str = "model.pth") -> Path:
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save
