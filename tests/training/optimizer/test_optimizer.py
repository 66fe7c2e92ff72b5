"""Parameter groups, learning rates and schedules (SPEC 8), and the settings they come from."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from goldfinch.errors import UserError
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import model_config
from goldfinch.training.config import OptimizerConfig, TrainConfig
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer, parameter_groups, set_learning_rate
from goldfinch.training.optimizer.schedule import learning_rate


@pytest.mark.parametrize("kind", TIME_MIXES)
def test_every_parameter_is_in_exactly_one_group_and_the_right_one(kind, small_config):
    model = Decoder(small_config(kind, kind))
    groups = parameter_groups(model)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    linear = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    assert set(groups["matrix"]) == linear
    assert set(groups["decay"]) == {name for name in names if name.endswith("decay.base")}


def test_a_parameter_that_no_rule_knows_is_an_error(small_config):
    model = Decoder(small_config("finch_c2"))
    model.blocks[0].time_mix.extra = nn.Parameter(model.head.weight[0].clone())
    with pytest.raises(KeyError, match="extra"):
        parameter_groups(model)


def test_matrices_decay_and_the_base_decay_learns_twice_as_fast(small_config):
    model = Decoder(small_config("finch_c2", "gold"))
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 1e-3)
    of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    settings = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert settings["head.weight"]["weight_decay"] == settings["token_cat.up.weight"]["weight_decay"] == 0.001
    assert settings["blocks.0.time_mix.ddlerp.low_rank.a"]["weight_decay"] == 0
    assert settings["blocks.1.time_mix.norm.weight"]["weight_decay"] == 0
    assert settings["blocks.0.time_mix.decay.base"]["weight_decay"] == 0
    assert settings["blocks.0.time_mix.decay.base"]["lr"] == 2e-3
    assert settings["head.weight"]["lr"] == settings["output_norm.bias"]["lr"] == 1e-3
    assert settings["head.weight"]["betas"] == (0.9, 0.99)
    assert settings["head.weight"]["eps"] == 1e-8


def test_rates_multiply_learning_rates_by_pattern_and_the_last_match_counts(small_config):
    model = Decoder(small_config("finch_c2", "gold"))
    rates = ("blocks.*=0.5", "blocks.1.*=0.25", "*.decay.base=0.1", "head.weight=3")
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate_multipliers=rates))
    set_learning_rate(optimizer, 1.0)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rate_of = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(rate) == sum(len(group["params"]) for group in optimizer.param_groups) == len(rate_of)
    assert rate_of["blocks.0.time_mix.key.weight"] == rate_of["blocks.0.time_mix.ddlerp.mu"] == 0.5
    assert rate_of["blocks.1.time_mix.query.weight"] == 0.25
    assert rate_of["blocks.0.time_mix.decay.base"] == pytest.approx(0.1 * 2)
    assert rate_of["head.weight"] == 3
    assert rate_of["embedding.weight"] == rate_of["output_norm.bias"] == 1


def test_a_rate_of_0_freezes_and_nothing_below_is_back_propagated_through(small_config):
    model = Decoder(small_config("finch_c2", "gold"))
    initialize(model, 0)
    model.blocks[1].time_mix.output.weight.data.normal_()
    rates = ("*=0", "blocks.1.*=1", "output_norm.*=1", "head.*=1")
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate_multipliers=rates))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    recorded = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: recorded.append(output[0].requires_grad))
    next_token_loss(model, torch.arange(24).view(2, 12)).backward()
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    assert recorded == [False]
    trained = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"head.weight", "blocks.1.time_mix.query.weight"} <= trained
    frozen = [name for name in before if not name.startswith(("blocks.1", "output_norm", "head"))]
    assert not trained & set(frozen)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (parameter not in optimizer.state) == (name in frozen), name


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ("blocks.7.*=1", r"no parameter matches 'blocks\.7\.\*'; the nearest is blocks\."),
        ("haed.weight=1", "the nearest is head.weight"),
        ("*=0", "freeze every parameter"),
        ("head.weight", "PATTERN=MULTIPLIER.*not 'head.weight'"),
        ("head.weight=fast", "PATTERN=MULTIPLIER"),
        ("=1", "PATTERN=MULTIPLIER"),
        ("head.weight=-1", "PATTERN=MULTIPLIER"),
        ("head.weight=nan", "PATTERN=MULTIPLIER"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(rate, message, small_config):
    with pytest.raises(UserError, match=message):
        build_optimizer(Decoder(small_config("finch", "finch")), OptimizerConfig(learning_rate_multipliers=(rate,)))


def test_learning_rate_is_a_quarter_cosine_after_ten_steps_of_warm_up():
    config = OptimizerConfig(learning_rate=6e-4, final_learning_rate=2e-4)
    assert learning_rate(0, 0, config) == pytest.approx(0.2 * 6e-4)
    assert learning_rate(5, 0.005, config) == pytest.approx(0.6 * (2e-4 + 4e-4 * math.cos(math.pi / 2 * 0.005)))
    assert learning_rate(10, 0.01, config) == pytest.approx(2e-4 + 4e-4 * math.cos(math.pi / 2 * 0.01))
    assert learning_rate(500, 0.5, config) == pytest.approx(2e-4 + 4e-4 * math.sqrt(0.5))
    assert learning_rate(1000, 1, config) == pytest.approx(2e-4)


def test_a_cosine_falls_by_half_in_the_middle_and_ends_at_the_final_rate():
    config = OptimizerConfig(learning_rate=5e-4, final_learning_rate=1e-4, schedule="cosine")
    assert learning_rate(100, 0, config) == pytest.approx(5e-4)
    assert learning_rate(100, 0.5, config) == pytest.approx(3e-4)
    assert learning_rate(100, 1, config) == pytest.approx(1e-4)
    assert learning_rate(5, 0, config) == pytest.approx(0.6 * 5e-4)


def test_wsd_warms_up_stays_and_falls_at_the_end():
    config = OptimizerConfig(learning_rate=5e-4, final_learning_rate=1e-4, schedule="wsd", decay_fraction=0.25)
    assert learning_rate(0, 0, config) == pytest.approx(0.2 * 5e-4)
    assert [learning_rate(50, progress, config) for progress in (0.1, 0.5, 0.75)] == [5e-4] * 3
    assert learning_rate(99, 0.75 + 0.25 / 4, config) == pytest.approx(4e-4)
    assert learning_rate(99, 1, config) == pytest.approx(1e-4)
    bent = dataclasses.replace(config, decay_shape="one_minus_sqrt")
    assert learning_rate(99, 0.75 + 0.25 / 4, bent) == pytest.approx(3e-4)
    assert learning_rate(99, 1, bent) == pytest.approx(1e-4)
    with pytest.raises(UserError, match="decay_fraction must be above 0"):
        OptimizerConfig(decay_fraction=0)
    for name, value in {"beta1": -1.0, "beta2": 1.0, "learning_rate": -1e-3, "weight_decay": float("inf")}.items():
        with pytest.raises(UserError, match=rf"optimizer\.{name} must be"):
            OptimizerConfig(**{name: value})


def test_settings_survive_json_and_bad_ones_are_refused(tmp_path):
    config = TrainConfig(
        model=model_config("goldfinch_rope-L3-D128", 300),
        data=(str(tmp_path),),
        output=tmp_path / "run",
        optimizer=OptimizerConfig(learning_rate_multipliers=("head.*=2",)),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    with pytest.raises(UserError, match="did you mean learning_rate"):
        TrainConfig.from_dict(config.to_dict() | {"optimizer": {"learning_rat": 1.0}})
    with pytest.raises(UserError, match="steps must be a whole number"):
        TrainConfig.from_dict(config.to_dict() | {"steps": 1.5})
    with pytest.raises(UserError, match="compile must be true or false"):
        TrainConfig.from_dict(config.to_dict() | {"compile": "no"})
    with pytest.raises(UserError, match="multiple of micro_batch_size"):
        dataclasses.replace(config, batch_size=8, micro_batch_size=3)
