"""Weights of several dtypes in one model: published checkpoints keep their norms in float32."""

import logging
import re

import pytest
import torch

from goldfinch.checkpoint.convert import export_reference, import_reference, read_tensors
from goldfinch.checkpoint.model_folder import load_model, read_config, save_model_folder
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.model import Decoder

KINDS = {
    "GoldFinch": ("finch_c2", "gold", "gold"),
    "Finch": ("finch", "finch"),
    "Finch-C2 without second value": ("finch_c2_no_v2", "gold"),
    "GPTAlpha": ("gptalpha", "gptalpha"),
    "Llama": ("llama", "llama"),
}
BOTH_WAYS = pytest.mark.parametrize(
    ("dtype", "other"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=["bf16", "fp32"]
)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def decoder(small_config, randomized):
    """kind, dtype -> a small model without neutral weights."""

    def make(kind, dtype):
        return randomized(Decoder(small_config(*KINDS[kind])), torch.float32).to(dtype).eval()

    return make


@pytest.fixture
def stored(decoder, tmp_path):
    """kind, dtype, changed names -> a folder whose weights of these names have another dtype."""

    def save(kind, dtype, other, *names):
        model = decoder(kind, dtype)
        weights = model.state_dict()
        weights |= {name: weights[name].to(other) for name in names}
        save_model_folder(tmp_path / "model", model.config, weights, None, overwrite=True)
        return tmp_path / "model"

    return save


def names_of(kind, model):
    """The weights of a model, of layers of the same kind once."""
    of_kind = {
        re.sub(r"blocks\.(\d+)", lambda match: KINDS[kind][int(match[1])], name): name for name in model.state_dict()
    }
    return list(of_kind.values())


def logits_of_forward(model):
    with torch.inference_mode():
        return model(torch.tensor([IDS]))[0][0, -1].float()


@BOTH_WAYS
@pytest.mark.parametrize("kind", KINDS)
def test_any_weight_may_be_stored_in_another_dtype(kind, dtype, other, decoder, stored, caplog):
    """The model computes in the dtype of most weights, and says that it converts the others."""
    for name in names_of(kind, decoder(kind, dtype)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            lm = LanguageModel(load_model(stored(kind, dtype, other, name)).eval(), None)
        assert {parameter.dtype for parameter in lm.model.parameters()} == {dtype}
        assert [name in record.getMessage() for record in caplog.records] == [True]
        expected = decoder(kind, dtype)
        expected.get_parameter(name).data = expected.get_parameter(name).to(other).to(dtype)
        wanted = LanguageModel(expected, None).read(IDS).logits
        assert (lm.read(IDS).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


@BOTH_WAYS
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_mixes_dtypes_in_memory_is_right_or_refused(kind, dtype, other, decoder):
    """Whoever changes a weight's dtype after loading gets PyTorch's answer, never memory read as another type."""
    truth = logits_of_forward(decoder(kind, torch.float32))
    for name in decoder(kind, dtype).state_dict():
        model = decoder(kind, dtype)
        model.get_parameter(name).data = model.get_parameter(name).to(other)
        try:
            logits = LanguageModel(model, None).read(IDS).logits
        except RuntimeError as error:
            assert "dtype" in str(error) or "type" in str(error)  # noqa: PT017 - both outcomes are right
        else:
            assert (logits.float() - truth).abs().max() <= 0.05 * truth.abs().max(), name


def test_the_dtype_that_is_asked_for_is_that_of_all_weights(stored, caplog):
    folder = stored("GoldFinch", torch.bfloat16, torch.float32, "output_norm.weight")
    model = load_model(folder, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not caplog.records


def test_numbers_that_no_model_computes_in_need_a_dtype(stored):
    folder = stored("Finch", torch.float8_e4m3fn, torch.float32, "output_norm.weight")
    with pytest.raises(UserError, match=r"model.safetensors holds float8_e4m3fn numbers.*dtype=\"bfloat16\""):
        load_model(folder)
    assert load_model(folder, torch.bfloat16).dtype == torch.bfloat16


def test_convert_keeps_every_dtype(stored, same_bits, tmp_path):
    folder = stored("Finch", torch.bfloat16, torch.float32, "output_norm.weight", "blocks.1.time_mix.norm.bias")
    export_reference(folder, tmp_path / "model.pth")
    import_reference(tmp_path / "model.pth", read_config(folder), tmp_path / "back", None)
    export_reference(tmp_path / "back", tmp_path / "again.pth")
    once, twice = read_tensors(tmp_path / "model.pth"), read_tensors(tmp_path / "again.pth")
    assert {str(tensor.dtype) for tensor in once.values()} == {"torch.bfloat16", "torch.float32"}
    assert same_bits(once, twice)
