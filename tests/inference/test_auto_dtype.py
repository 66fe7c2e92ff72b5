"""dtype="auto" of models and of saved contexts, on processors with and without bfloat16 instructions."""

import logging

import pytest
import torch

import goldfinch as gf
from goldfinch import devices
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.batch import Batch
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.sampling import Sampling

PROCESSORS = {"not native": (("avx2",), torch.float32), "native": (("avx512_bf16",), torch.bfloat16)}
EACH_PROCESSOR = pytest.mark.parametrize(("found", "auto"), PROCESSORS.values(), ids=PROCESSORS)
TEXT = "Call me Ishmael. Some years ago."


@pytest.fixture
def folder(small_config, small_model, tmp_path):
    """folder(dtype) -> a model folder whose weights are stored in this dtype."""

    def save(dtype=torch.float32):
        config = small_config("finch_c2", "gold", "gold", vocab_size=257, rope=gf.RopeConfig())
        model = small_model(config, torch.float32).to(dtype)
        LanguageModel(model, ByteTokenizer()).save(tmp_path / "model", overwrite=True)
        return tmp_path / "model"

    return save


@pytest.fixture
def warned(caplog, monkeypatch):
    """warned() -> the warnings of slow dtypes, as in a new process."""
    monkeypatch.setattr(devices, "_reported_slow", set())
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


@EACH_PROCESSOR
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_model_is_loaded_in_the_dtype_that_is_fast_here(found, auto, stored, folder, instructions, warned):
    instructions(*found)
    lm = gf.load(folder(stored))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {auto}
    assert lm.generate(TEXT, max_tokens=3, seed=0).finish_reason
    assert not warned()


@EACH_PROCESSOR
def test_a_dtype_that_is_asked_for_is_used_and_reported_once_if_it_is_slow(found, auto, folder, instructions, warned):
    instructions(*found)
    for _ in range(2):
        assert gf.load(folder(), "bfloat16").model.dtype == torch.bfloat16
    assert gf.load(folder(torch.bfloat16), "float32").model.dtype == torch.float32
    assert [text.partition(":")[0] for text in warned()] == ["bfloat16 is slow here"] * (auto == torch.float32)


def test_a_context_opens_on_a_processor_where_auto_is_another_dtype(folder, instructions, warned, tmp_path):
    instructions("avx512_bf16")
    context = gf.load(folder()).read(TEXT)
    expected = context.logits
    context.save(tmp_path / "text.gfc")
    instructions("avx2")
    lm = gf.load(folder())
    opened = [lm.open(tmp_path / "text.gfc") for _ in range(2)]
    assert (lm.model.dtype, opened[0].model.dtype) == (torch.float32, torch.bfloat16)
    assert opened[0].model is opened[1].model  # loaded once
    torch.testing.assert_close(opened[0].logits, expected, rtol=0, atol=0)
    opened[0].read(TEXT).save(tmp_path / "text.gfc")
    instructions("avx512_bf16")
    assert len(gf.load(folder()).open(tmp_path / "text.gfc")) == 2 * len(TEXT)
    assert len(warned()) == 1  # the user did not choose the dtype, but may wonder


def test_a_context_that_is_opened_in_its_own_dtype_keeps_the_models_positions(folder, instructions, tmp_path):
    folder = folder()
    rope = gf.RopeConfig(rescale=4)
    instructions("avx512_bf16")
    context = gf.load(folder, rope=rope).read(TEXT)
    context.save(tmp_path / "text.gfc")
    instructions("avx2")
    opened = gf.load(folder, rope=rope).open(tmp_path / "text.gfc")
    assert opened.model.config.rope == rope
    torch.testing.assert_close(opened.logits, context.logits, rtol=0, atol=0)


def test_a_dtype_that_was_asked_for_is_not_replaced_by_the_files(folder, instructions, tmp_path):
    instructions("avx512_bf16")
    gf.load(folder()).read(TEXT).save(tmp_path / "text.gfc")
    with pytest.raises(UserError, match=r"written with weights in bfloat16, these are in float32: .*--dtype bfloat16"):
        gf.load(folder(), "float32").open(tmp_path / "text.gfc")


def test_a_batch_is_of_one_dtype(folder, instructions, tmp_path):
    instructions("avx512_bf16")
    gf.load(folder()).read(TEXT).save(tmp_path / "text.gfc")
    instructions("avx2")
    lm = gf.load(folder())
    batch = Batch()
    batch.add(lm.read(TEXT).generation_state(Sampling(seed=0), 5))
    with pytest.raises(ValueError, match="in another dtype"):
        batch.add(lm.open(tmp_path / "text.gfc").generation_state(Sampling(seed=0), 5))
