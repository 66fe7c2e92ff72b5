"""Our own folder format: what is saved comes back, and nothing broken is believed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from goldfinch.checkpoint import safetensors_file
from goldfinch.checkpoint.model_folder import (
    load_model,
    read_config,
    read_tokenizer,
    save_description,
    save_weights,
)
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.model import Decoder


@pytest.fixture
def model(small_config, small_model):
    return small_model(small_config("finch_c2", "gold", rope=RopeConfig(rescale=2)), dtype=torch.float32)


@pytest.fixture
def folder(model, tmp_path):
    folder = tmp_path / "model"
    save_description(folder, model.config, None)
    save_weights(folder, model.state_dict())
    return folder


@pytest.mark.parametrize(
    "plan",
    [("finch", "finch"), ("finch_c2", "finch_c2_no_v2", "gold"), ("gptalpha",), ("llama", "llama")],
    ids=lambda plan: plan[-1],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_saved_comes_back(plan, dtype, small_config, small_model, tmp_path, same_bits):
    model = small_model(small_config(*plan), dtype=dtype)
    save_description(tmp_path, model.config, ByteTokenizer())
    save_weights(tmp_path, model.state_dict())
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert isinstance(read_tokenizer(tmp_path, small_config(*plan, vocab_size=257)), ByteTokenizer)


def test_equal_models_are_equal_files(model, tmp_path):
    for name in ("first", "second", "third", "fourth", "fifth"):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name, model.state_dict())
    assert len({path.read_bytes() for path in tmp_path.rglob("*.safetensors")}) == 1


def test_the_dtype_can_be_another_than_on_disk(folder, model, same_bits):
    wanted = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    assert same_bits(load_model(folder, torch.bfloat16).state_dict(), wanted)
    save_weights(folder, wanted)
    assert {tensor.dtype for tensor in load_model(folder).state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_model(folder, torch.float32).state_dict().values()} == {torch.float32}


def test_a_loaded_model_computes_and_trains(folder, model):
    loaded = load_model(folder)
    ids = torch.arange(12).reshape(2, 6)
    logits, _ = loaded(ids)
    assert torch.equal(logits, model(ids)[0])
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("share", [0, 4, 8, 9, 100, 0.3, 0.9, -1])
def test_half_written_weights_are_refused(share, folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole)) if isinstance(share, float) else share])
    with pytest.raises(UserError, match=r"model\.safetensors is not a valid safetensors file"):
        load_model(folder)


def test_one_error_lists_all_that_does_not_fit(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    tensors |= {"extra": torch.ones(1), "model.output_norm.bias": torch.ones(3)}
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    for wanted in ("head.weight is missing", "extra is unexpected", "output_norm.bias is (3,), not (64,)", str(path)):
        assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_tensors_that_do_not_fit_the_first_are_named(folder):
    save_file({f"{number} {'x' * 500}": torch.ones(1) for number in range(50)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"0 x+\.\.\.; .*; and \d+ more$") as caught:
        load_model(folder)
    assert len(str(caught.value).replace(str(folder), "")) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is not valid JSON"),
        (b'{"format": "goldf', "config.json is not valid JSON"),
        (b"\xff\xfe", "config.json is not UTF-8 text, at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": "goldfinch", "format": 1}', "the key 'format' occurs twice"),
        (b'{"version": NaN}', "NaN is not a number"),
        (b" " * (17 << 20), "more than 16,777,216 bytes"),
        (b"[]", "not a GoldFinch config; convert published"),
        (b'{"model_type": "llama"}', "not a GoldFinch config"),
        (b'{"format": "goldfinch", "version": 1}', "not a GoldFinch config"),
        (b'{"model_type": "goldfinch", "format_version": 3}', "format_version is 3, this program reads 2: update"),
        (b'{"model_type": "goldfinch"}', "format_version is None"),
        (b'{"model_type": "goldfinch", "format_version": 2, "hidden_size": 64}', "lacks vocab_size, time_mixes"),
        (
            b'{"model_type": "goldfinch", "format_version": 2, "hidden_size": 64, "num_attention_heads": 3}',
            "hidden_size 64 must be a multiple of num_attention_heads 3",
        ),
        (
            b'{"model_type": "goldfinch", "format_version": 2, "time_mixes": ["gold"], "num_hidden_layers": 2}',
            "num_hidden_layers is 2, but time_mixes names 1 layers",
        ),
        (b'{"format": "goldfinch", "version": 1, "model": {"widht": 3}}', "widht; did you mean width"),
    ],
)
def test_configs_that_are_none(content, message, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no model: config\.json is missing"):
        read_config(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights yet: model\.safetensors is missing"):
        load_model(folder)
    assert read_tokenizer(folder, read_config(folder)) is None


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder, model):
    save_description(folder, model.config, ByteTokenizer())
    with pytest.raises(UserError, match=r"tokenizer\.json has 257 ids, the model only 41"):
        read_tokenizer(folder, model.config)


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, UserError)])
def test_a_save_that_is_killed_leaves_the_old_weights(error, seen, folder, model, same_bits, monkeypatch):
    def write_half(_, path, *__):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors_file, "save_file", write_half)
    with pytest.raises(seen):
        save_weights(folder, {name: tensor + 1 for name, tensor in model.state_dict().items()})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert same_bits(load_model(folder).state_dict(), model.state_dict())


def test_the_config_on_disk_is_plain_json(folder, model):
    content = json.loads((folder / "config.json").read_text())
    assert content["model_type"] == "goldfinch"
    assert content["time_mixes"] == ["finch_c2", "gold"]
    assert content["rope"] == {"base": 10000.0, "rescale": 2.0, "rebase": 1.0}
    assert [content["hidden_size"], content["num_hidden_layers"]] == [model.config.width, 2]
    assert read_config(folder) == model.config


def test_folders_of_earlier_versions_are_read(folder, model, same_bits):
    content = {"format": "goldfinch", "version": 1, "model": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "model.safetensors")
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert same_bits(loaded.state_dict(), model.state_dict())


def test_weights_in_several_files_are_read(folder, model, same_bits):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: names[number % 2] for number, name in enumerate(weights)}
    for file in names:
        save_file({name: tensor for name, tensor in weights.items() if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same_bits(load_model(folder).state_dict(), model.state_dict())
    (folder / names[0]).unlink()
    with pytest.raises(UserError, match=f"{names[0]} is missing; copy it there"):
        load_model(folder)
    for bad in ({}, {"a": "../other.safetensors"}, {"a": 3}, {"a": "model.bin"}):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(UserError, match="does not say which safetensors files"):
            load_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 2**40, "width must be at most 16,777,216"),
        ("vocab_size", 10**400, "vocab_size must be a whole number"),
        ("vocab_size", 2.5, "vocab_size must be a whole number, not 2.5"),
        ("vocab_size", True, "vocab_size must be a whole number, not True"),
        ("hidden_size", "64\x00", "width must be a whole number"),
        ("time_mixes", ["finch"] * 10**5, "time_mixes must name 1 to 1,024 layers, not 100,000"),
        ("time_mixes", [["finch"]], "time_mixes must be text"),
        ("time_mixes", {"a": 1}, "time_mixes must be a list"),
        ("rope", {"base": 1e308, "rescale": -1}, "rope.rescale must be above 0"),
        ("rope", [], "rope must be a mapping"),
        ("channel_mix", None, "unknown channel_mix"),
    ],
)
def test_a_config_of_no_possible_model_is_refused_before_anything_is_built(field, value, message, folder, monkeypatch):
    content = json.loads((folder / "config.json").read_text())
    content[field] = value
    content.pop("num_hidden_layers")
    (folder / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr(Decoder, "__init__", None)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 300


def test_a_flipped_bit_in_the_weights_names_the_tensor(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    offsets = {name: entry["data_offsets"] for name, entry in json.loads(content[8:header]).items() if "dtype" in entry}
    for name in list(offsets)[::7]:
        start, stop = offsets[name]
        damaged = bytearray(content)
        damaged[header + (start + stop) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"model.safetensors is corrupt: the checksum of {name} does not match"):
            load_model(folder)
    path.write_bytes(content)
    load_model(folder)


def test_weights_of_other_programs_have_no_checksums_and_load(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    load_model(folder)
