"""`goldfinch export onnx`, judged by ONNX Runtime."""

import onnxruntime
import pytest
import torch

from goldfinch.checkpoint.model_folder import save_model_folder
from goldfinch.checkpoint.onnx import export_onnx
from goldfinch.cli.main import run as run_command
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel


@pytest.fixture
def model(small_config, small_model):
    """model(*plan) -> a small model without neutral weights."""
    return lambda *plan, **fields: small_model(small_config(*plan, vocab_size=257, **fields), torch.float32)


@pytest.fixture
def folder(tmp_path):
    def save(model):
        save_model_folder(tmp_path / "model", model.config, model.state_dict(), ByteTokenizer(), overwrite=True)
        return tmp_path / "model"

    return save


def run(path, texts):
    """The outputs of each step, by name, for several texts of the same length at once."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {each.name: [len(texts), *each.shape[1:]] for each in session.get_inputs()}
    assert shapes.pop("ids") == [len(texts), 1]
    state = {name: torch.zeros(shape).numpy() for name, shape in shapes.items()}
    names = [output.name for output in session.get_outputs()]
    for ids in torch.tensor(texts).T[:, :, None]:
        outputs = dict(zip(names, session.run(None, {"ids": ids.numpy()} | state), strict=True))
        state = {name: outputs.pop(f"next.{name}") for name in state}
        yield {name: torch.from_numpy(output) for name, output in outputs.items()}


TEXTS = [list(b"Call me Ishmael."), list(b"It was the devil")]


@pytest.mark.slow
def test_a_finch_gives_the_same_logits_step_by_step(model, folder, tmp_path):
    finch = model("finch", "finch")
    assert run_command(["export", "onnx", str(folder(finch)), "-o", str(tmp_path / "finch.onnx")]) == 0
    with torch.no_grad():
        expected = finch(torch.tensor(TEXTS))[0]
    for step, outputs in enumerate(run(tmp_path / "finch.onnx", TEXTS)):
        torch.testing.assert_close(outputs["logits"], expected[:, step], rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.slow
def test_a_goldfinch_gives_the_compressed_keys_of_its_context(model, folder, tmp_path):
    goldfinch = model("finch_c2", "finch_c2", "gold")
    exported = export_onnx(folder(goldfinch), tmp_path / "goldfinch.onnx")
    assert exported.config == goldfinch.config
    keys = torch.cat([outputs["compressed_keys"] for outputs in run(tmp_path / "goldfinch.onnx", TEXTS[:1])])
    context = LanguageModel(goldfinch, None).read(TEXTS[0])
    expected = context.sequence.key_cache.latents(0, len(context), torch.float32)
    torch.testing.assert_close(keys, expected, rtol=0, atol=1e-5 * float(expected.std()))


def test_what_cannot_be_exported_says_why(model, folder, tmp_path):
    with pytest.raises(UserError, match="gptalpha layers: only recurrent layers"):
        export_onnx(folder(model("gptalpha", "gold")), tmp_path / "model.onnx")
    source = folder(model("finch", "finch"))
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export_onnx(source, tmp_path / "model.bin")
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(UserError, match="exists: choose another name, or give --overwrite"):
        export_onnx(source, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "precious"
