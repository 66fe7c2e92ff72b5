"""What a dry run says, against what real tensors weigh."""

import dataclasses

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.model.accounting import account
from goldfinch.model.initialization import initialize
from goldfinch.training.config import Cluster, OptimizerConfig, TrainConfig
from goldfinch.training.dry_run import dry_run, fixed_bytes, optimizer_bytes, parameters_by_part
from goldfinch.training.live_memory import measure_activations, watch_pass
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.recipes import recipe, recipe_names

PLANS = {
    "goldfinch": ("finch_c2",) * 4 + ("gold",) * 3,
    "finch": ("finch",) * 3,
    "gptalpha": ("gptalpha",) * 3,
    "llama": ("llama",) * 3,
}
TOKENS = (2, 32)


@pytest.fixture
def model_of_plan(small_config):
    def make(plan):
        model = Decoder(small_config(*PLANS[plan], vocab_size=301))
        initialize(model, 0)
        return model

    return make


def a_window():
    return torch.randint(301, (TOKENS[0], TOKENS[1] + 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_without_content_weigh_what_real_ones_do(plan, checkpointing, model_of_plan):
    model = model_of_plan(plan)
    kept, peak, _ = watch_pass(model, a_window(), False, checkpointing)
    estimate = measure_activations(
        model.config, OptimizerConfig(), *TOKENS, autocast=False, activation_checkpointing=checkpointing
    )
    assert (estimate.kept, estimate.working) == (kept, peak - kept)


def test_documents_that_are_kept_apart_take_their_masks(model_of_plan):
    model = model_of_plan("goldfinch")
    kept, peak, _ = watch_pass(model, a_window(), False, False, reset_after=7)
    apart = measure_activations(model.config, OptimizerConfig(), *TOKENS, autocast=False, document_resets=True)
    assert (apart.kept, apart.working) == (kept, peak - kept)
    assert kept > measure_activations(model.config, OptimizerConfig(), *TOKENS, autocast=False).kept


@pytest.mark.parametrize("plan", ["goldfinch", "llama"])
def test_under_autocast_they_are_so_within_a_percent(plan, model_of_plan):
    model = model_of_plan(plan)
    kept, peak, _ = watch_pass(model, a_window(), True, False)
    estimate = measure_activations(model.config, OptimizerConfig(), *TOKENS, autocast=True)
    assert estimate.kept == pytest.approx(kept, rel=0.01)
    assert estimate.kept + estimate.working == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_kept_is_what_autograd_saves_and_the_gradients_at_the_head(plan, model_of_plan):
    model, windows = model_of_plan(plan), a_window()
    saved = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        loss = next_token_loss(model, windows)
    for tensor in (windows, *model.parameters()):
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    head = model.head.weight.nbytes + 4 * TOKENS[0] * TOKENS[1] * model.config.width
    kept, _, _ = watch_pass(model, windows, False, False)
    assert kept == sum(storage.nbytes() for storage in saved.values()) + head + loss.nbytes


def test_activations_of_frozen_layers_are_not_counted(small_config):
    config = small_config("finch_c2", "finch_c2", "finch_c2", "gold")
    frozen = OptimizerConfig(learning_rate_multipliers=("*=0", "blocks.3.*=1", "output_norm.*=1", "head.*=1"))
    model = Decoder(config)
    initialize(model, 0)
    build_optimizer(model, frozen)
    kept, _, _ = watch_pass(model, a_window() % 41, False, False)
    assert measure_activations(config, frozen, *TOKENS, autocast=False).kept == kept
    assert kept < 0.5 * measure_activations(config, OptimizerConfig(), *TOKENS, autocast=False).kept


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("multipliers", [(), ("blocks.0.*=0",)])
def test_weights_gradients_and_optimizer_weigh_what_they_say(kind, multipliers, model_of_plan):
    model = model_of_plan("goldfinch")
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, learning_rate_multipliers=multipliers))
    predicted = fixed_bytes(model, optimizer, processes=1, micro_batches=1, bf16=True)
    next_token_loss(model, a_window()).backward()
    optimizer.step()
    state = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    assert predicted == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "optimizer state": state,
    }
    assert optimizer_bytes(optimizer) == state


def test_several_processes_share_whole_rows(small_config):
    model = Decoder(small_config("finch"))
    optimizer = build_optimizer(model, OptimizerConfig())
    rows = sum(-(-p.shape[0] // 3) * p.numel() // p.shape[0] for p in model.parameters())
    parts = fixed_bytes(model, optimizer, processes=3, micro_batches=1, bf16=True)
    assert parts["weights"] == parts["gradients"] == 4 * rows
    replicated = fixed_bytes(model, optimizer, processes=6, micro_batches=1, bf16=True, num_replicas=2)
    assert replicated["weights"] == parts["weights"]
    total = sum(p.numel() for p in model.parameters())
    several = fixed_bytes(model, optimizer, processes=3, micro_batches=2, bf16=True)
    assert several["gathered weights"] == 2 * total
    assert several["gradients being reduced"] == 4 * total


def test_steps_flops_and_days_follow_from_the_settings():
    values = recipe("compare/L6-D256-goldfinch", 4096) | {"data": "data", "output": "run"}
    config = TrainConfig.from_dict(values | {"steps": 0, "epochs": 2.0})
    cluster = Cluster(num_gpus=2, gpu_tflops=10, utilisation=0.5, tokens=1_000_001)
    plan = dry_run(config, cluster)
    assert plan.steps == -(-2 * (1_000_000 // 512) // 8)
    assert plan.tokens_per_step == 8 * 512
    assert (plan.micro_batch_size, plan.micro_batches) == (4, 1)
    flops = account(config.model, 512).training_flops_per_token * 8 * 512
    assert plan.flops_per_step == flops
    assert plan.days == pytest.approx(plan.steps * flops / (2 * 10e12 * 0.5) / 86400)
    assert sum(plan.parameters.values()) == account(config.model).parameters
    assert plan.total_bytes(True) < plan.total_bytes(False)
    alone = dry_run(dataclasses.replace(config, steps=7), dataclasses.replace(cluster, num_gpus=1))
    assert (alone.steps, alone.micro_batches) == (7, 2)
    with pytest.raises(UserError, match="8 sequences cannot be shared by 3"):
        dry_run(config, dataclasses.replace(cluster, num_gpus=3))
    with pytest.raises(UserError, match="utilisation"):
        Cluster(utilisation=1.5)


def test_parts_of_every_kind_add_up_to_its_parameters():
    for name in (name for name in recipe_names() if "L24" not in name):
        config = ModelConfig.from_dict(recipe(name)["model"])
        model = Decoder.on_meta(config)
        assert sum(parameters_by_part(model).values()) == account(config).parameters, name
