"""Preset names, configs to and from plain data, and plans that cannot be."""

import json

import pytest

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.presets import KINDS, SIZES, model_config, preset_names


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("goldfnch-L12-D768", "goldfnch-L12-D768.*did you mean goldfinch?"),
        ("gptalfa-L12-D768", "did you mean gptalpha?"),
        ("zzz", "such as goldfinch-L6-D256"),
        ("", "unknown preset"),
        ("goldfinch", "unknown size in preset 'goldfinch'; known: L12-D768"),
        ("goldfinch-D768-L12", "unknown size"),
        ("goldfinch-L0-D768", "unknown size"),
        ("goldfinch-L12-D768x", "unknown size"),
        ("goldfinch-L12-D100", "width 100 must be a multiple of head_size 64"),
    ],
)
def test_a_wrong_preset_is_named_with_the_nearest_right_one(preset, message):
    with pytest.raises(UserError, match=message) as caught:
        model_config(preset)
    assert "\n" not in str(caught.value)


def test_every_listed_preset_exists_and_has_its_size():
    assert len(preset_names()) == len(KINDS) * len(SIZES)
    for name in preset_names():
        config = model_config(name)
        assert name.endswith(f"-L{config.num_layers}-D{config.width}")
        assert config.vocab_size == 65536
    assert model_config("finch-L2-D128", vocab_size=300).vocab_size == 300


@pytest.mark.parametrize(
    ("kind", "layers", "gold"),
    [
        ("goldfinch", 12, 4),
        ("goldfinch", 24, 8),
        ("goldfinch", 10, 4),
        ("goldfinch", 1, 1),
        ("goldfinch_half", 12, 6),
        ("goldfinch_sixth", 12, 2),
        ("goldfinch_sixth", 24, 4),
        ("finch_c2", 12, 0),
    ],
)
def test_the_first_gold_layer_is_where_the_reference_puts_it(kind, layers, gold):
    config = model_config(f"{kind}-L{layers}-D768")
    assert config.num_gold_layers == gold
    assert config.time_mixes == ("finch_c2",) * (layers - gold) + ("gold",) * gold


def test_published_channel_mix_widths():
    assert model_config("goldfinch-L12-D768").channel_mix_width == 2688
    assert model_config("llama-L12-D768").channel_mix_width == 2048
    assert model_config("goldfinch-L24-D2048").channel_mix_width == 7168
    assert model_config("llama-L24-D2048").channel_mix_width == 5440


@pytest.mark.parametrize("kind", KINDS)
def test_configs_survive_the_way_through_json(kind):
    config = model_config(f"{kind}-L6-D192", vocab_size=777)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


PLAIN = {"vocab_size": 100, "width": 128, "time_mixes": ["finch_c2", "gold"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 128}, "unknown field widht; did you mean width?"),
        ({"rope": {"rescal": 2}}, "unknown field rope.rescal; did you mean rescale?"),
        ({"rope": {"rescale": 0}}, "rope.rescale must be above 0 and finite, not 0"),
        ({"time_mixes": ["gold", "finch_c2"]}, "GOLD layers must be the last"),
        ({"time_mixes": ["gold", "finch_c2", "gold"]}, "GOLD layers must be the last"),
        ({"time_mixes": ["finch3"]}, "finch3"),
        ({"time_mixes": []}, "time_mixes must name 1 to 1,024 layers, not 0"),
        ({"channel_mix": "relu"}, "unknown channel.mix 'relu'"),
        ({"width": 100}, "width 100 must be a multiple of head_size 64"),
        ({"width": 192, "latent_ratio": 5}, "width 192 must be a multiple of latent_ratio 5"),
        ({"width": 0}, "width must be above 0, not 0"),
        ({"vocab_size": -1}, "vocab_size must be above 0, not -1"),
        ({"head_size": 1, "rope": {}}, "head_size 1 must be even"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_dict(PLAIN | change)


def test_missing_fields_are_listed():
    with pytest.raises(UserError, match="lacks vocab_size, width"):
        ModelConfig.from_dict({"time_mixes": ["finch"]})
