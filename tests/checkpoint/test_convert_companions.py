"""`goldfinch convert FOLDER -o model.pth` writes next to the .pth what converting it back needs."""

import pytest
import torch

from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.model_folder import load_model, read_config, read_tokenizer, save_model_folder
from goldfinch.cli.main import run
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer


@pytest.mark.parametrize(
    "plan",
    [
        ("finch_c2", "finch_c2", "gold"),
        ("finch_c2_no_v2", "finch_c2_no_v2", "gold"),
        ("finch", "gold", "gold", "gold", "gold"),
        ("finch", "finch"),
        ("finch_c2",),
        ("llama", "llama"),
        ("gptalpha", "llama", "gptalpha"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("fields", [{}, {"shift_rank": 16, "rope": RopeConfig(rescale=2)}], ids=["usual", "unusual"])
def test_the_command_alone_converts_there_and_back(plan, fields, small_config, small_model, same_bits, tmp_path):
    model = small_model(small_config(*plan, vocab_size=257, **fields), dtype=torch.float32)
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), ByteTokenizer())
    assert run(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "model.pth")]) == 0
    assert run(["convert", str(tmp_path / "model.pth"), "-o", str(tmp_path / "back")]) == 0
    assert read_config(tmp_path / "back") == model.config
    assert read_tokenizer(tmp_path / "back", model.config).name == "bytes"
    assert same_bits(load_model(tmp_path / "back").state_dict(), model.state_dict())


def test_the_config_of_a_model_folder_describes_a_pth(small_config, small_model, tmp_path):
    model = small_model(small_config("finch_c2", "gold"), dtype=torch.float32)
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), None)
    export_reference(tmp_path / "model", tmp_path / "model.pth")
    (tmp_path / "model.yaml").unlink()
    back = ["convert", str(tmp_path / "model.pth"), "-o", str(tmp_path / "back")]
    assert run([*back, "--config", str(tmp_path / "model" / "config.json")]) == 0
    assert read_config(tmp_path / "back") == model.config
