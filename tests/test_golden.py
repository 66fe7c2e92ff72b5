"""Every published model kind, against inputs and outputs of the reference implementation (SPEC, golden data)."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from goldfinch.checkpoint.reference import from_reference, tensor_names
from goldfinch.checkpoint.reference_config import model_config_from_reference
from goldfinch.model import Decoder

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
golden_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_weights)


def test_all_thirteen_kinds_are_here():
    assert len(list(GOLDEN.glob("*.safetensors"))) == 13


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_logits_loss_and_every_gradient_equal_the_reference(path, record_property):
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    reference_config = json.loads(metadata["config"])
    config = model_config_from_reference(reference_config)
    tensors = {
        name: torch.from_numpy(golden_weights.weight(name, tuple(shape), reference_config["seed"]))
        for name, shape in json.loads(metadata["parameter_shapes"]).items()
    }
    model = Decoder(config)
    model.load_state_dict(from_reference(tensors, config))

    ids = golden["input_ids"]
    logits, _ = model(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()

    difference = (logits - golden["logits"]).abs().max().item()
    record_property("largest difference of a logit", difference)
    assert difference <= 5e-5
    assert abs(loss - golden["loss"]) <= 1e-5

    parameters = dict(model.named_parameters())
    compared = set()
    for name in tensor_names(config):
        gradient = parameters[name.ours].grad
        if gradient is None:
            gradient = torch.zeros_like(parameters[name.ours])
        norm = (gradient if name.row is None else gradient[name.row]).norm().item()
        wanted = golden[f"grad_norm/{name.reference}"].item()
        assert abs(norm - wanted) <= max(1e-3 * wanted, 1e-6), name.reference
        compared.add(name.reference)
    # What we have no place for is the bonus that the reference's Finch-C2 stores and never uses.
    for name in tensors.keys() - compared:
        assert name.endswith("time_faaaa")
        assert golden[f"grad_norm/{name}"] == 0
