"""The published names, their config files, and shapes that speak for themselves."""

import json

import pytest
import torch

from goldfinch.checkpoint.reference import from_reference, tensor_names, to_reference
from goldfinch.checkpoint.reference_config import (
    ignored_keys,
    infer_finch_config,
    model_config_from_reference,
    read_reference_config,
)
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.errors import UserError
from goldfinch.layers.initial_values import bonus
from goldfinch.model import Decoder

SMALL = {"tmix": "x060c2", "tmix2": "gold", "n_layer": 6, "n_embd": 128}


def finch_tensors(**sizes):
    """A published checkpoint of a pure Finch, all zeros."""
    config = ModelConfig(**{"vocab_size": 50, "width": 64, "time_mixes": ("finch",) * 3} | sizes)
    return config, {name.reference: torch.zeros(name.shape) for name in tensor_names(config)}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_there_and_back_is_the_same_to_the_last_bit(golden, dtype, same_bits):
    tensors = {name: tensor.to(dtype) for name, tensor in golden.tensors.items()}
    back = to_reference(from_reference(tensors, golden.config), golden.config)
    assert back.keys() == tensors.keys()
    used = {name.reference for name in tensor_names(golden.config)}
    assert same_bits({name: back[name] for name in used}, {name: tensors[name] for name in used})
    for name in tensors.keys() - used:
        layer = int(name.split(".")[1])
        assert name == f"blocks.{layer}.att.time_faaaa"
        assert same_bits({name: back[name]}, {name: bonus(layer, 6, 2, 64).to(dtype)})


def test_every_parameter_of_the_model_has_a_published_name(golden):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Decoder(golden.config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in from_reference(golden.tensors, golden.config).items()} == shapes


def test_the_bonus_that_finch_c2_never_uses_may_be_missing_but_not_of_another_shape(published, same_bits):
    kind = published("goldfinch")
    lean = {name: tensor for name, tensor in kind.tensors.items() if not name.endswith("time_faaaa")}
    assert len(lean) < len(kind.tensors)
    assert same_bits(from_reference(lean, kind.config), from_reference(kind.tensors, kind.config))
    with pytest.raises(UserError, match=r"of another shape: blocks\.0\.att\.time_faaaa is \(4, 32\), not \(2, 64\)"):
        from_reference(kind.tensors | {"blocks.0.att.time_faaaa": torch.zeros(4, 32)}, kind.config)


def test_one_error_lists_all_that_does_not_fit(published):
    kind = published("goldfinch")
    tensors = dict(kind.tensors)
    del tensors["emb.weight"], tensors["blocks.5.att.time_maa_kv_w2"]
    tensors |= {"blocks.6.ln1.weight": torch.ones(128), "extra": torch.ones(1), "head.weight": torch.ones(320, 64)}
    with pytest.raises(UserError) as caught:
        from_reference(tensors, kind.config)
    message = str(caught.value)
    assert "missing: emb.weight, blocks.5.att.time_maa_kv_w2;" in message
    assert "unexpected: blocks.6.ln1.weight, extra;" in message
    assert "of another shape: head.weight is (320, 64), not (320, 128)" in message
    assert "--config" in message
    assert "\n" not in message


# --- config files ----------------------------------------------------------------------------------------------------


def test_later_files_override_earlier_ones_key_by_key(tmp_path):
    first, second, third = tmp_path / "goldfinch.yaml", tmp_path / "L12.yaml", tmp_path / "long.json"
    first.write_text(
        "model:\n  tmix: x060c2\n  tmix2: gold\n  n_layer: 6\n  n_embd: 128\n  ctx_len: 1024\n"
        "  rope: {base: 5000, rescale: 2}\ntrain:\n  lr_init: 6e-4\n"
    )
    second.write_text("n_layer: 12\nn_embd: 768\ndropout: 0\n")
    third.write_text(json.dumps({"model": {"rope": {"rescale": 4.0}}}))
    values = read_reference_config([first, second, third])
    assert values["rope"] == {"base": 5000, "rescale": 4.0}
    assert ignored_keys(values) == ["ctx_len", "dropout"]
    assert model_config_from_reference(values) == ModelConfig(
        vocab_size=65536,
        width=768,
        time_mixes=("finch_c2",) * 8 + ("gold",) * 4,
        rope=RopeConfig(base=5000, rescale=4),
    )
    assert read_reference_config([second, first])["n_layer"] == 6


def test_a_later_null_takes_positions_away(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("{tmix: gptalpha, n_layer: 2, n_embd: 64, rope: {base: 10000}}")
    second.write_text("rope: null")
    assert model_config_from_reference(read_reference_config([first])).rope == RopeConfig()
    assert model_config_from_reference(read_reference_config([first, second])).rope is None


def test_every_golden_config_is_understood_completely(golden):
    assert ignored_keys(golden.values) == ["seed"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, {"latent_ratio": 16, "head_size": 64, "vocab_size": 65536, "num_layers": 6, "num_gold_layers": 2}),
        ({"inv_other_layer_ratio": 2}, {"num_gold_layers": 3}),
        ({"inv_other_layer_ratio": 6}, {"num_gold_layers": 1}),
        ({"kv_cache_compression_ratio": 1}, {"latent_width": 128}),
        ({"vocab_size": 320, "head_size": 32}, {"vocab_size": 320, "num_heads": 4}),
        ({"tmix2": None}, {"time_mixes": ("finch_c2",) * 6}),
        ({"tmix2": "gptalpha"}, {"time_mixes": ("finch_c2",) * 4 + ("gptalpha",) * 2}),
        ({"use_v2": 0, "n_layer": 2}, {"time_mixes": ("finch_c2_no_v2", "gold")}),
        ({"use_one_minus_w": False, "n_layer": 2}, {"time_mixes": ("finch_c2_no_one_minus_w", "gold")}),
        ({"tmix": "x060", "use_v2": False, "n_layer": 2}, {"time_mixes": ("finch", "gold")}),
        ({"dim_ffn": 512}, {"channel_mix_width": 512}),
        ({"dim_ffn": 0, "dim_att": 0}, {"channel_mix_width": 448}),
        ({"dim_att": 128}, {"width": 128}),
        ({"tmix": "llama", "tmix2": None, "dim_ffn": 448}, {"channel_mix": "swiglu", "channel_mix_width": 320}),
        ({"rope": False}, {"rope": None}),
    ],
    ids=str,
)
def test_keys_of_the_reference(values, wanted):
    config = model_config_from_reference(SMALL | values)
    assert {name: getattr(config, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": "twelve"}, "n_layer .* whole number above 0, not 'twelve'"),
        ({"n_layer": True}, "n_layer .* not True"),
        ({"n_layer": 2.5}, "n_layer .* not 2.5"),
        ({"n_layer": -1}, "n_layer .* not -1"),
        ({"n_layer": None}, "lacks 'n_layer'; .* another --config"),
        ({"n_embd": [128]}, "n_embd .* whole number"),
        ({"n_embd": 100}, "width 100 must be a multiple of head_size 64"),
        ({"inv_other_layer_ratio": 0}, "inv_other_layer_ratio .* above 0"),
        ({"kv_cache_compression_ratio": 0}, "kv_cache_compression_ratio .* above 0"),
        ({"dim_ffn": "wide"}, "dim_ffn .* not 'wide'"),
        ({"dim_att": 64}, "dim_att 64 must equal n_embd 128"),
        ({"tmix": "x060c3"}, "unknown tmix 'x060c3' .* did you mean x060c2"),
        ({"tmix": ["x060"]}, r"unknown tmix \['x060'\]"),
        ({"tmix2": {"a": 1}}, "unknown tmix2"),
        ({"cmix": 7}, "unknown cmix 7"),
        ({"use_v2": "no"}, "use_v2 .* true or false, not 'no'"),
        ({"use_v2": 0, "use_one_minus_w": 0}, "both off"),
        ({"rope": 10000}, "rope must be a mapping"),
        ({"rope": {}}, "rope is empty"),
        ({"rope": {"theta": 1e4}}, r"unknown field rope\.theta"),
        ({"rope": {"base": "high"}}, r"rope\.base must be a number, not 'high'"),
        ({"rope": {"base": -1}}, r"rope\.base must be above 0"),
        ({"rope": {1: 2}}, r"unknown field rope\.1"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_one_line(values, message):
    with pytest.raises(UserError, match=message) as caught:
        model_config_from_reference(SMALL | values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"model: [1, 2", "a.yaml is not valid YAML"),
        ("a.json", b"{", "a.json is not valid JSON"),
        ("a.yaml", b"", "must hold a mapping"),
        ("a.yaml", b"model: 3", "must hold a mapping"),
        ("a.yaml", b"- 1\n- 2", "must hold a mapping"),
        ("a.yaml", b"\xff\xfe\xfa", "a.yaml is not UTF-8 text"),
        ("a.yaml", b"a: \x00", "a.yaml is not valid YAML"),
        ("a.yaml", b"[" * 5000, "a.yaml is not valid YAML: it is nested too deeply"),
        ("a.yaml", b"a: &x [1, 2]\nb: *x", "aliases"),
        ("a.yaml", b"model:\n  n_layer: 1\n  n_layer: 2", "the key 'n_layer' occurs twice"),
        ("a.yaml", None, "cannot read .*a.yaml"),
    ],
    ids=str,
)
def test_config_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_reference_config([path])
    assert "\n" not in str(caught.value)


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"shift_rank": 64, "decay_rank": 128},
        {"head_size": 32, "channel_width": 256},
        {"time_mixes": ("finch",), "vocab_size": 7},
    ],
    ids=str,
)
def test_finch_tells_its_shape(sizes):
    config, tensors = finch_tensors(**{"channel_width": 224} | sizes)
    inferred = infer_finch_config(tensors)
    assert inferred == config
    from_reference(tensors, inferred)


def test_other_kinds_do_not_tell_their_shape(golden):
    if set(golden.config.time_mixes) == {"finch"}:
        assert infer_finch_config(golden.tensors) == golden.config
    else:
        with pytest.raises(UserError, match=r"only for a pure Finch .* it lacks blocks\.\d\..* with --config"):
            infer_finch_config(golden.tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"emb.weight": None},
        {"emb.weight": torch.zeros(7)},
        {"blocks.0.ffn.key.weight": None},
        {"blocks.0.att.time_maa_w1": None},
        {"blocks.0.att.time_faaaa": torch.zeros(64)},
        {"blocks.2.att.gate.weight": None},
        {"blocks.9.att.key.weight": torch.zeros(2, 2)},
        {"blocks.0.att.time_maa_w1": torch.zeros(64, 3)},
        {"blocks.0.att.time_faaaa": torch.zeros(2, 48)},
        {"emb.weight": torch.zeros(0, 64)},
        {"emb.weight": torch.tensor(1.0)},
    ],
    ids=lambda change: f"{next(iter(change))}-{getattr(next(iter(change.values())), 'shape', None)}",
)
def test_a_damaged_finch_is_a_user_error(change):
    _, tensors = finch_tensors()
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(UserError):
        infer_finch_config(changed)


@pytest.mark.parametrize("name", ["blocks.x.att.key.weight", "blocks.", "blocks", "blocks.99999999999.att.key.weight"])
def test_odd_names_are_left_over_not_a_crash(name):
    _, tensors = finch_tensors()
    odd = tensors | {name: torch.zeros(1)}
    with pytest.raises(UserError, match="unexpected: blocks"):
        from_reference(odd, infer_finch_config(odd))
    with pytest.raises(UserError, match=r"lacks emb\.weight"):
        infer_finch_config({name: torch.zeros(1)})


def test_a_published_config_of_a_billion_layers_is_refused():
    with pytest.raises(UserError, match="n_layer in the reference config must be at most"):
        model_config_from_reference({"tmix": "x060c2", "n_embd": 64, "n_layer": 10**9})
