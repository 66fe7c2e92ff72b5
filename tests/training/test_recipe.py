"""The paper's training recipe: parameter groups, schedule, and who gets which settings (SPEC 8)."""

import dataclasses
import math

import pytest
from torch import nn

from goldfinch.errors import UserError
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder
from goldfinch.presets import model_config
from goldfinch.training.config import OptimizerConfig, TrainConfig, recipe
from goldfinch.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from goldfinch.training.schedule import learning_rate


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


def test_learning_rate_is_a_quarter_cosine_after_ten_steps_of_warm_up():
    config = OptimizerConfig(learning_rate=6e-4, final_learning_rate=2e-4)
    assert learning_rate(0, 0, config) == pytest.approx(0.2 * 6e-4)
    assert learning_rate(5, 0.005, config) == pytest.approx(0.6 * (2e-4 + 4e-4 * math.cos(math.pi / 2 * 0.005)))
    assert learning_rate(10, 0.01, config) == pytest.approx(2e-4 + 4e-4 * math.cos(math.pi / 2 * 0.01))
    assert learning_rate(500, 0.5, config) == pytest.approx(2e-4 + 4e-4 * math.sqrt(0.5))
    assert learning_rate(1000, 1, config) == pytest.approx(2e-4)


def test_the_papers_sizes_get_the_papers_settings():
    small, large = recipe(model_config("goldfinch-L12-D768")), recipe(model_config("finch-L24-D2048"))
    assert (small["context"], small["batch_size"]) == (1024, 64)
    assert (small["optimizer"]["learning_rate"], small["optimizer"]["final_learning_rate"]) == (6e-4, 2e-4)
    assert large["context"] * large["batch_size"] == 128 * 1024
    assert (large["optimizer"]["learning_rate"], large["optimizer"]["final_learning_rate"]) == (3e-4, 1e-4)


def test_settings_survive_json_and_bad_ones_are_refused(tmp_path):
    config = TrainConfig(model=model_config("goldfinch_rope-L3-D128", 300), data=tmp_path, output=tmp_path / "run")
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="did you mean learning_rate"):
        TrainConfig.from_dict(config.to_dict() | {"optimizer": {"learning_rat": 1.0}})
    with pytest.raises(UserError, match="steps must be a whole number"):
        TrainConfig.from_dict(config.to_dict() | {"steps": 1.5})
    with pytest.raises(UserError, match="compile must be true or false"):
        TrainConfig.from_dict(config.to_dict() | {"compile": "no"})
    with pytest.raises(UserError, match="multiple of micro_batch_size"):
        dataclasses.replace(config, batch_size=8, micro_batch_size=3)
