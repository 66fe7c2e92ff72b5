"""Tuning the GOLD layers alone: what is below does not change, costs no gradients, and saved contexts stay valid."""

import dataclasses
import json
from collections import Counter

import pytest
import several
import torch

import goldfinch as gf
from goldfinch.checkpoint.model_folder import load_model, save_description, save_weights
from goldfinch.cli.train import resolve
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.model.block import Block
from goldfinch.training.config import OptimizerConfig, gold_only
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.parallel.parallelize import apply_block_plan
from goldfinch.training.trainer import Trainer

TRAINED = ("blocks.2.", "blocks.3.", "output_norm.", "head.")


@pytest.fixture
def config(small_config):
    return small_config("finch_c2", "finch", "gold", "gold", vocab_size=257, rope=RopeConfig())


@pytest.fixture
def base(config, small_model, tmp_path):
    """A model in a folder, bf16, as a published one would be."""
    save_description(tmp_path / "base", config, ByteTokenizer())
    save_weights(tmp_path / "base", small_model(config, torch.bfloat16).state_dict())
    return tmp_path / "base"


@pytest.fixture
def tuned(base, config, settings, silent):
    """tuned(**fields) -> the folder of a run of a few steps on the GOLD layers of `base`."""

    def make(**fields):
        optimizer = OptimizerConfig(learning_rate=1e-2, learning_rate_multipliers=gold_only(config))
        run = settings(initial=base, model=config, optimizer=optimizer, **fields)
        Trainer(run, silent()).train()
        return run.output

    return make


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_what_is_below_gold_keeps_every_bit(activation_checkpointing, base, tuned):
    before, after = (
        load_model(base).state_dict(),
        load_model(tuned(activation_checkpointing=activation_checkpointing)).state_dict(),
    )
    for name, weight in before.items():
        same = torch.equal(after[name], weight.float())
        assert same != name.startswith(TRAINED), name


@pytest.fixture
def frozen_model(config, small_model):
    """frozen_model(**block plan) -> a model of which the GOLD layers and the head are trained, with its optimizer."""

    def make(**plan):
        model = small_model(config, torch.float32).requires_grad_()
        apply_block_plan(model, **plan)
        return model, build_optimizer(model, OptimizerConfig(learning_rate_multipliers=gold_only(config)))

    return make


def windows():
    return torch.randint(257, (2, 18), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_below_gold_nothing_is_recorded_kept_or_run_again(activation_checkpointing, frozen_model, monkeypatch):
    model, optimizer = frozen_model(activation_checkpointing=activation_checkpointing)
    runs, recording, kept = Counter(), {}, Counter()
    forward, now = Block.forward, []

    def watched(block, *args):
        layer = list(model.blocks).index(block)
        runs[layer] += 1
        recording[layer] = torch.is_grad_enabled()
        now.append(layer)
        try:
            return forward(block, *args)
        finally:
            now.pop()

    def pack(tensor):
        kept[now[-1] if now else None] += 1
        return tensor

    monkeypatch.setattr(Block, "forward", watched)
    apply_block_plan(model, activation_checkpointing=activation_checkpointing)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = next_token_loss(model, windows())
        loss.backward()
    again = 2 if activation_checkpointing else 1
    assert runs == {0: 1, 1: 1, 2: again, 3: again}
    assert recording == {0: False, 1: False, 2: True, 3: True}
    assert not {0, 1} & kept.keys()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if name.startswith(TRAINED)
    }
    optimizer.step()
    trained = {parameter for name, parameter in model.named_parameters() if name.startswith(TRAINED)}
    assert optimizer.state.keys() == trained


def test_gradients_are_those_of_training_everything(config, small_model, frozen_model):
    whole = small_model(config, torch.float32).requires_grad_()
    part, _ = frozen_model()
    for model in (whole, part):
        next_token_loss(model, windows()).backward()
    for name, parameter in part.named_parameters():
        if name.startswith(TRAINED):
            torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad, rtol=1e-5, atol=1e-6)


def test_gradients_go_through_frozen_layers_to_trained_ones_below(config, small_model):
    """Only what has nothing trained below it records nothing: here the embedding is, and W_KD between frozen layers."""
    for trained in ("embedding.*", "token_cat.down.*", "blocks.0.time_mix.key.*"):
        whole, part = (small_model(config, torch.float32).requires_grad_() for _ in range(2))
        apply_block_plan(part)
        build_optimizer(part, OptimizerConfig(learning_rate_multipliers=("*=0", f"{trained}=1")))
        for model in (whole, part):
            next_token_loss(model, windows()).backward()
        (name,) = (name for name, parameter in part.named_parameters() if parameter.grad is not None)
        torch.testing.assert_close(part.get_parameter(name).grad, whole.get_parameter(name).grad, rtol=1e-5, atol=1e-6)


def test_the_flag_stands_for_patterns_that_others_may_follow(base, tmp_path):
    args = ["--initial", str(base), "--data", "D", "-o", str(tmp_path / "run"), "--train-only", "gold"]
    config = resolve([*args, "--optimizer.learning-rate-multipliers", "head.*=0.5"]).settings
    gold = ("blocks.2.*=1", "blocks.3.*=1")
    assert config.optimizer.learning_rate_multipliers == ("*=0", *gold, "output_norm.*=1", "head.*=1", "head.*=0.5")


def test_a_model_without_gold_layers_is_told_where_to_get_some():
    with pytest.raises(UserError, match="no GOLD layers to train: `goldfinch upgrade`"):
        gold_only(ModelConfig(vocab_size=9, width=64, time_mixes=("finch",)))


@pytest.mark.parametrize("latents", ["bfloat16", "int8"])
def test_a_context_read_before_tuning_is_used_after_it(latents, base, tuned, config, tmp_path):
    text = "The whale swims past the ship and sinks. " * 20
    before = gf.load(base, dtype="bfloat16")
    before.read(text, latents).save(tmp_path / "book.gfc")
    model = dataclasses.replace(config, rope=RopeConfig(rescale=4))
    after = gf.load(tuned(), dtype="bfloat16")
    opened, fresh = after.open(tmp_path / "book.gfc"), after.read(text, latents)
    assert torch.equal(opened.logits, fresh.logits)
    assert not torch.equal(opened.logits, before.open(tmp_path / "book.gfc").logits)
    assert torch.equal(opened.read("The ship").logits, fresh.read("The ship").logits)
    assert opened.measure_quantization() is None
    # Other positions as well: nothing that is kept was turned.
    turned = gf.load(tmp_path / "run", dtype="bfloat16", rope=model.rope)
    assert torch.equal(turned.open(tmp_path / "book.gfc").logits, turned.read(text, latents).logits)


def test_a_context_is_refused_once_anything_below_is_tuned(base, config, settings, silent, tmp_path):
    gf.load(base, dtype="bfloat16").read("The whale").save(tmp_path / "book.gfc")
    rates = (*gold_only(config), "blocks.1.time_mix.norm.bias=1")
    run = settings(
        initial=base, model=config, optimizer=OptimizerConfig(learning_rate=1e-2, learning_rate_multipliers=rates)
    )
    Trainer(run, silent()).train()
    with pytest.raises(UserError, match="below the GOLD layers this model differs"):
        gf.load(run.output, dtype="bfloat16").open(tmp_path / "book.gfc")


def test_two_processes_tune_the_same_weights_and_leave_the_same_alone(base, tuned, config, settings, tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-2, learning_rate_multipliers=gold_only(config))
    run = settings(initial=base, model=config, optimizer=optimizer, output=tmp_path / "two", micro_batch_size=1)
    (tmp_path / "two.json").write_text(json.dumps(run.to_dict()))
    ended = several.goldfinch(2, ["train", "--config", tmp_path / "two.json"], tmp_path)
    assert ended.exit_codes == [0, 0], ended.printed
    one, two = (load_model(folder).state_dict() for folder in (tuned(), tmp_path / "two"))
    for name, weight in one.items():
        tolerance = 1e-4 if name.startswith(TRAINED) else 0.0
        torch.testing.assert_close(two[name], weight, rtol=0, atol=tolerance, msg=name)


def test_weights_that_cannot_be_read_are_reported_by_one_process(base, config, settings, tmp_path):
    (base / "model.safetensors").write_bytes(b"half")
    run = settings(initial=base, model=config, output=tmp_path / "two")
    (tmp_path / "two.json").write_text(json.dumps(run.to_dict()))
    ended = several.goldfinch(2, ["train", "--config", tmp_path / "two.json"], tmp_path)
    assert ended.exit_codes == [2, 2], ended.printed
    assert ["not a valid safetensors file" in printed for printed in ended.printed] == [True, False]
    assert not (tmp_path / "two").exists()
