"""Models of int8 weights: written, read back, and refused where only others will do."""

import pytest
import torch

import goldfinch as gf
from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.model_folder import read_config
from goldfinch.checkpoint.quantize import quantize, weight_kind
from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.layers.quantized import QuantizedLinear
from goldfinch.model import Decoder
from goldfinch.training.config import TrainConfig
from goldfinch.training.initial_weights import set_initial_weights

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely."


@pytest.fixture
def folder(small_config, small_model, tmp_path):
    """Of a model with random weights."""
    model = small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32)
    LanguageModel(model, ByteTokenizer()).save(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_quantized_when_loaded_is_what_the_command_writes(folder, tmp_path, capsys):
    assert run(["quantize", str(folder), "-o", str(tmp_path / "int8")]) == 0
    assert "of weights" in capsys.readouterr().out
    written, loaded = gf.load(tmp_path / "int8"), gf.load(folder, weights="int8")
    assert weight_kind(written.model) == "int8"
    assert weight_kind(gf.load(folder).model) is None
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(written.model.state_dict()[name], tensor)
    again = gf.load(tmp_path / "int8", weights="int8")
    assert torch.equal(again.model.head.weight, written.model.head.weight)


def test_it_predicts_nearly_the_same_in_all_ways(folder):
    exact, lm = gf.load(folder), gf.load(folder, weights="int8")
    ids = torch.as_tensor(lm.encode(TEXT)).reshape(1, -1)
    logits, expected = lm.logits(ids), exact.logits(ids)
    assert 0 < (logits - expected).abs().max() < 0.05 * expected.std()
    context = lm.context()
    for token in ids[0]:
        context.read([int(token)])
    torch.testing.assert_close(context.logits, logits[0, -1], atol=1e-4, rtol=0)


def test_the_small_parts_stay_as_they_are(folder):
    exact, lm = gf.load(folder), gf.load(folder, weights="int8")
    kept = dict(lm.model.named_parameters())
    assert {name.rpartition(".")[2] for name in kept} >= {"mu_x", "base", "a", "b", "bias"}
    assert {"token_cat.down.weight", "token_cat.up.weight", "output_norm.weight"} <= kept.keys()
    for name, parameter in kept.items():
        assert torch.equal(parameter, dict(exact.model.named_parameters())[name])
    assert all(isinstance(block.channel_mix.key, QuantizedLinear) for block in lm.model.blocks)


def test_a_context_belongs_to_the_weights_that_wrote_it(folder, tmp_path):
    gf.load(folder).read(TEXT).save(tmp_path / "text.gfc")
    with pytest.raises(UserError, match="model"):
        gf.load(folder, weights="int8").open(tmp_path / "text.gfc")
    gf.load(folder, weights="int8").read(TEXT).save(tmp_path / "int8.gfc")
    assert len(gf.load(folder, weights="int8").open(tmp_path / "int8.gfc")) == len(gf.load(folder).encode(TEXT))


def test_what_needs_other_weights_says_so(folder, tmp_path, data, capsys):
    gf.load(folder, weights="int8").save(tmp_path / "int8")
    with pytest.raises(UserError, match="int8"):
        quantize(gf.load(tmp_path / "int8").model, "int8")
    with pytest.raises(UserError, match="int8"):
        export_reference(tmp_path / "int8", tmp_path / "model.pth")
    for command in (
        ["quantize", tmp_path / "int8", "-o", tmp_path / "x"],
        ["export", "gguf", tmp_path / "int8", "-o", tmp_path / "x.gguf"],
        ["export", "hf", tmp_path / "int8", "-o", tmp_path / "x"],
    ):
        assert run([str(part) for part in command]) == 2
        assert "int8" in capsys.readouterr().err
    config = TrainConfig(model=read_config(folder), data=(data,), output=tmp_path / "run", initial=tmp_path / "int8")
    with pytest.raises(UserError, match="int8"):
        set_initial_weights(Decoder(config.model), config)


@pytest.mark.parametrize("weights", ["int3", "float32", 8, ""])
def test_weights_that_there_are_not_are_refused(folder, weights):
    with pytest.raises(UserError, match="int8"):
        gf.load(folder, weights=weights)


def test_a_file_in_another_dtype_is_opened_with_the_same_kind_of_weights(folder, tmp_path):
    gf.load(folder, "bfloat16", weights="int8").read(TEXT).save(tmp_path / "int8.gfc")
    gf.load(folder, "bfloat16").read(TEXT).save(tmp_path / "exact.gfc")
    lm = gf.load(folder, weights="int8")
    lm._dtype_is_auto = True
    assert len(lm.open(tmp_path / "int8.gfc")) == len(lm.encode(TEXT))
    with pytest.raises(UserError, match="model"):
        lm.open(tmp_path / "exact.gfc")


def test_codes_of_a_damaged_file_are_refused(folder, tmp_path):
    lm = gf.load(folder, weights="int8")
    lm.save(tmp_path / "int8")
    content = bytearray((tmp_path / "int8" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "int8" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        gf.load(tmp_path / "int8")
