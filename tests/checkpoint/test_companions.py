"""`goldfinch convert FOLDER -o model.pth` writes next to the .pth what converting it back needs."""

import pytest
import torch

from goldfinch.checkpoint.companions import read_companions
from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.model_folder import load_model, read_config, read_tokenizer, save_model_folder
from goldfinch.cli.main import run
from goldfinch.config import RopeConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError


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
    template = ChatTemplate("{% for message in messages %}<{{ message.content }}>{% endfor %}")
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), ByteTokenizer(), template)
    assert run(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "model.pth")]) == 0
    assert run(["convert", str(tmp_path / "model.pth"), "-o", str(tmp_path / "back")]) == 0
    assert read_config(tmp_path / "back") == model.config
    assert read_tokenizer(tmp_path / "back", model.config).name == "bytes"
    assert ChatTemplate.load(tmp_path / "back") == template
    assert same_bits(load_model(tmp_path / "back").state_dict(), model.state_dict())


def test_the_config_of_a_model_folder_describes_a_pth(small_config, small_model, tmp_path):
    model = small_model(small_config("finch_c2", "gold"), dtype=torch.float32)
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), None)
    export_reference(tmp_path / "model", tmp_path / "model.pth")
    (tmp_path / "model.yaml").unlink()
    back = ["convert", str(tmp_path / "model.pth"), "-o", str(tmp_path / "back")]
    assert run([*back, "--config", str(tmp_path / "model" / "config.json")]) == 0
    assert read_config(tmp_path / "back") == model.config


@pytest.fixture
def finch(small_config, small_model, tmp_path):
    """A Finch with the tokenizer of bytes as model.pth, and its config."""
    model = small_model(small_config("finch", "finch", vocab_size=257), dtype=torch.float32)
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), ByteTokenizer())
    export_reference(tmp_path / "model", tmp_path / "model.pth")
    return tmp_path / "model.pth", model.config


def test_a_yaml_file_about_something_else_is_left_alone(finch):
    pth, _ = finch
    pth.with_suffix(".yaml").write_text("steps: 1000\nmodel: goldfinch\n")
    assert read_companions(pth).config is None
    assert read_companions(pth).tokenizer.name == "bytes"


def test_a_config_of_no_possible_model_names_its_file(finch):
    pth, _ = finch
    pth.with_suffix(".yaml").write_text("tmix: x060\nn_layer: 0\nn_embd: 64\n")
    with pytest.raises(UserError, match=r"model\.yaml: n_layer in the reference config"):
        read_companions(pth)


def test_upgrading_a_pth_takes_along_what_lies_next_to_it(finch, tmp_path):
    pth, _ = finch
    assert run(["upgrade", str(pth), "--gold", "append:1", "-o", str(tmp_path / "upgraded")]) == 0
    assert read_tokenizer(tmp_path / "upgraded", read_config(tmp_path / "upgraded")).name == "bytes"


def test_without_a_tokenizer_none_is_left_from_the_model_before(finch, tmp_path):
    pth, config = finch
    (tmp_path / "model" / "tokenizer.json").unlink()
    export_reference(tmp_path / "model", pth, overwrite=True)
    assert read_companions(pth).tokenizer is None
    assert read_companions(pth).config == config
