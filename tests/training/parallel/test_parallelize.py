"""Activation checkpointing and torch.compile change what a step costs, not what it computes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import goldfinch as gf
from goldfinch.errors import UserError
from goldfinch.mixers import TIME_MIXES
from goldfinch.training.loss import next_token_loss
from goldfinch.training.parallel import parallelize as parallel_plan
from goldfinch.training.parallel.parallelize import apply_block_plan
from goldfinch.training.trainer import Trainer

# torch.compile looks at it itself and hides the warning; but where warnings are errors, it comes as one first.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
PLANS = {"goldfinch": ("finch_c2", "finch_c2", "gold", "gold"), "llama": ("llama", "llama", "llama")}


@pytest.fixture
def model_with(small_config, small_model):
    """model_with(*plan, **block plan) -> a model that takes gradients; the same weights for the same plan."""

    def make(*plan, **parallel_plan):
        model = small_model(small_config(*plan), torch.float32).requires_grad_()
        apply_block_plan(model, **parallel_plan)
        return model

    return make


@pytest.fixture
def backend(monkeypatch):
    """Compiles nothing, but traces forward and backward, and counts the graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(parallel_plan, "BACKEND", counter)
    yield counter
    torch.compiler.reset()


def windows(length=17):
    return torch.randint(41, (2, length + 1), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(model, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = next_token_loss(model, windows())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach()} | gradients


def assert_close(actual, expected, tolerance):
    """Largest difference, relative to the largest entry of the tensor."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (actual[name] - wanted).abs().max() <= tolerance * wanted.abs().max(), name


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_checkpointing_changes_no_bit_of_the_loss_and_the_gradients(plan, bf16, model_with):
    expected = loss_and_gradients(model_with(*plan), bf16)
    actual = loss_and_gradients(model_with(*plan, activation_checkpointing=True), bf16)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert actual.keys() == expected.keys()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_checkpointing_keeps_the_inputs_of_blocks_only(plan, model_with):
    plain, checkpointed = (
        _saved_bytes(model_with(*plan, activation_checkpointing=activation_checkpointing))
        for activation_checkpointing in (False, True)
    )
    deeper = _saved_bytes(model_with(*plan, plan[-1], activation_checkpointing=True))
    block_input = 2 * 17 * 64 * 4
    assert deeper - checkpointed == block_input
    assert checkpointed < plain / 4


def _saved_bytes(model):
    """Of the activations that a forward pass keeps for the backward pass, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(windows()[:, :-1])
    return sum(storage.nbytes() for storage in kept.values())


class PowerFailure(Exception):
    pass


@pytest.mark.parametrize("before", [False, True])
def test_a_run_goes_on_to_the_bit_with_checkpointing_switched(before, settings, silent, tmp_path):
    class Failing(silent):
        def step(self, record, done):
            if record["step"] == 5:
                raise PowerFailure

    whole, rest = silent(), silent()
    Trainer(settings(output=tmp_path / "whole"), whole).train()
    output = tmp_path / "parts"
    with pytest.raises(PowerFailure):
        Trainer(settings(output=output, activation_checkpointing=before), Failing()).train()
    Trainer(settings(output=output, activation_checkpointing=not before), rest, resume=True).train()
    assert rest.started == (4, 6)
    assert rest.losses == whole.losses[4:]
    weights = [gf.load(tmp_path / name).model.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compiled_blocks_are_whole_graphs_one_for_each_kind_with_the_same_gradients(
    activation_checkpointing, model_with, backend
):
    plan = ("finch_c2",) * 3 + ("gold",) * 2
    expected = loss_and_gradients(model_with(*plan))
    model = model_with(*plan, compiled=True, activation_checkpointing=activation_checkpointing)
    assert_close(loss_and_gradients(model), expected, 1e-5)
    assert backend.frame_count == 2


def test_compiled_blocks_take_bf16_autocast(model_with, backend):
    plan = ("finch_c2", "gold")
    expected = loss_and_gradients(model_with(*plan), bf16=True)
    assert_close(loss_and_gradients(model_with(*plan, compiled=True), bf16=True), expected, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(TIME_MIXES.keys() - {"finch_c2", "gold"}))
def test_blocks_of_every_other_kind_compile_too(kind, model_with, backend):
    expected = loss_and_gradients(model_with(kind, kind))
    assert_close(loss_and_gradients(model_with(kind, kind, compiled=True)), expected, 1e-5)
    assert backend.frame_count == 1


def test_validation_and_samples_compile_nothing(settings, silent, backend):
    seen = silent()
    Trainer(settings(steps=3, compile=True, validate_every=1, sample_every=1), seen).train()
    assert len(seen.validations) == len(seen.samples) == 3
    assert backend.frame_count == 2
    assert seen.compile_seconds > 0


def test_names_of_parameters_stay(model_with, backend):
    plan = PLANS["goldfinch"]
    model = model_with(*plan, activation_checkpointing=True, compiled=True)
    assert model.state_dict().keys() == model_with(*plan).state_dict().keys()


def test_a_backend_that_does_not_work_is_one_line(model_with, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(parallel_plan, "BACKEND", broken)
    model = model_with("llama", compiled=True)
    with pytest.raises(UserError, match=r"does not work here \(no compiler\): train with --no-compile"):
        loss_and_gradients(model)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch uses what it has deprecated itself
def test_a_run_with_the_real_compiler_learns_the_same(settings, silent, tmp_path):
    eager, compiled = silent(), silent()
    Trainer(settings(output=tmp_path / "eager"), eager).train()
    Trainer(settings(output=tmp_path / "compiled", compile=True), compiled).train()
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    torch.compiler.reset()
