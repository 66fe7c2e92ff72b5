"""`goldfinch export hf`: a repository that transformers, `gf.load` and the Hub read, with a card of facts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import goldfinch as gf
import goldfinch.huggingface
from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.model_folder import read_weights, save_model_folder
from goldfinch.cli.main import run
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.shards import Index
from goldfinch.data.stream import Stream
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer
from goldfinch.model import Decoder

CHATML = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SHARDED = {"whole": "1GB", "in shards": "50kB"}


@pytest.fixture
def config(small_config):
    return small_config("finch_c2", "finch_c2", "gold", vocab_size=257)


@pytest.fixture
def folder(config, small_model, tmp_path, monkeypatch):
    """A model folder with weights of two dtypes, as a published checkpoint may have them."""
    weights = small_model(config, torch.bfloat16).state_dict()
    weights["output_norm.weight"] = weights["output_norm.weight"].float() + 1e-6
    save_model_folder(tmp_path / "model", config, weights, ByteTokenizer(), ChatTemplate(user="Ishmael"))
    monkeypatch.chdir(tmp_path)
    return Path("model")


def export(*arguments, code=0):
    assert run(["export", "hf", *map(str, arguments)]) == code


@pytest.mark.parametrize("shard_size", SHARDED.values(), ids=SHARDED)
def test_every_weight_is_read_back_bit_for_bit(shard_size, folder, config, same_bits):
    export(folder, "-o", "repository", "--shard-size", shard_size)
    files = sorted(path.name for path in Path("repository").glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard_size == "1GB")
    empty = Decoder.on_meta(config)
    assert same_bits(read_weights(Path("repository"), empty), read_weights(folder, empty))
    lm, original = (gf.load(each) for each in ("repository", folder))
    assert lm.tokenizer.hash == original.tokenizer.hash
    assert lm.chat_template == original.chat_template


@pytest.mark.parametrize("shard_size", SHARDED.values(), ids=SHARDED)
def test_what_transformers_saves_again_is_the_same_model(shard_size, folder, config, small_model, same_bits):
    gf.LanguageModel(small_model(config, torch.bfloat16), ByteTokenizer()).save("plain")
    export("plain", "-o", "repository", "--shard-size", shard_size)
    model = AutoModelForCausalLM.from_pretrained("repository")
    assert model.dtype == torch.bfloat16
    model.save_pretrained("again", max_shard_size=shard_size)
    AutoTokenizer.from_pretrained("repository").save_pretrained("again")
    empty = Decoder.on_meta(config)
    assert same_bits(read_weights(Path("again"), empty), read_weights(Path("plain"), empty))
    assert gf.load("again").tokenizer.hash == gf.load("plain").tokenizer.hash


def test_a_damaged_shard_is_noticed(folder):
    export(folder, "-o", "repository", "--shard-size", "50kB")
    shard = max(Path("repository").glob("model-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(gf.UserError, match=f"{shard} is corrupt: the checksum of .* does not match"):
        gf.load("repository")


REMOTE = """
import sys
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
)
assert "goldfinch" not in sys.modules
AutoTokenizer.from_pretrained("repository", trust_remote_code=False)
assert "goldfinch" not in sys.modules
classes = [AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification]
for auto in classes:
    model = auto.from_pretrained("repository", trust_remote_code=True)
    print(type(model).__module__, type(model).__name__)
model.save_pretrained("classifier")
print(type(AutoModel.from_pretrained("classifier", trust_remote_code=True)).__name__)
"""


def python(code, tmp_path):
    """Run code in a process that has imported nothing yet, and has no network and no cache."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_remote_code_loads_it_where_goldfinch_was_never_imported(folder, tmp_path):
    export(folder, "-o", "repository")
    done = python(REMOTE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "goldfinch.huggingface.heads GoldFinchForCausalLM",
        "goldfinch.huggingface.modeling GoldFinchModel",
        "goldfinch.huggingface.heads GoldFinchForSequenceClassification",
        "goldfinch.huggingface.heads GoldFinchForTokenClassification",
        "GoldFinchModel",
    ]
    assert [path.name for path in Path("classifier").glob("*.py")] == ["modeling_goldfinch.py"]


def test_without_goldfinch_remote_code_says_how_to_install_it(folder, tmp_path):
    export(folder, "-o", "repository")
    load = "from transformers import AutoConfig; AutoConfig.from_pretrained('repository', trust_remote_code=True)"
    done = python(f"import sys; sys.modules['goldfinch'] = None; {load}", tmp_path)
    assert done.returncode
    assert "ImportError: this model needs the package goldfinch: pip install 'goldfinch[hf]'" in done.stderr


def test_generation_ends_where_a_text_or_an_answer_does(config, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = BpeTokenizer.train(["Call me Ishmael. " * 20], 300).to_backend()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = BpeTokenizer(library)
    config = gf.ModelConfig.from_dict(config.to_dict() | {"vocab_size": tokenizer.vocab_size})
    model = small_model(config, torch.float32)
    gf.LanguageModel(model, tokenizer, chat_template=ChatTemplate(CHATML)).save("model")
    export("model", "-o", "repository")
    ends = [tokenizer.end_of_text, tokenizer.special_token_ids["<|im_end|>"]]
    assert GenerationConfig.from_pretrained("repository").eos_token_id == ends
    assert GenerationConfig.from_pretrained("repository").pad_token_id == ends[0]
    assert goldfinch.huggingface.GoldFinchConfig.from_pretrained("repository").pad_token_id == ends[0]


def test_a_pth_with_its_companions_is_exported(folder):
    export_reference(folder, Path("model.pth"))
    export("model.pth", "-o", "repository")
    assert gf.load("repository").chat_template == ChatTemplate(user="Ishmael")
    assert gf.load("repository").generate("The", max_tokens=2).text


def test_a_model_without_a_tokenizer_is_exported(config, small_model, tmp_path):
    save_model_folder(tmp_path / "model", config, small_model(config, torch.float32).state_dict(), None)
    export(tmp_path / "model", "-o", tmp_path / "repository")
    assert gf.load(tmp_path / "repository").tokenizer is None
    assert GenerationConfig.from_pretrained(tmp_path / "repository").eos_token_id is None


@pytest.fixture
def trained(data, tmp_path, monkeypatch, capsys):
    """A run of three steps."""
    monkeypatch.chdir(tmp_path)
    lines = f"train goldfinch-L3-D64 --data {data} -o run --steps 3 --batch-size 2 --sequence-length 16 --seed 5"
    assert run([*lines.split(), "--sample-every", "0", "--max-validation-tokens", "64"]) == 0
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def test_the_card_of_a_run_has_its_settings_and_losses(trained):
    export("run", "-o", "small")
    card = ModelCard.load("small/README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license is None
    assert card.data.datasets is None
    validation = trained[-1]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["loss"] == round(validation["validation_loss"], 4)
    assert found["bits_per_byte"] == round(validation["bits_per_byte"], 4)
    for line in (
        "2 finch_c2, then 1 gold layers",
        f"| parameters | {sum(weight.numel() for weight in gf.load('run').model.parameters()):,}, in float32 |",
        "| steps | 3, each of 2 sequences of 16 tokens |",
        "| tokens | 96 |",
        "| seed | 5 |",
        f"| validation loss | {validation['validation_loss']:.4f} nats per token |",
        "goldfinch generate small",
    ):
        assert line in card.text


def test_the_card_names_the_dataset_and_the_base_model_on_the_hub(trained, data):
    settings = json.loads(Path("run/training.json").read_text())
    Path("streamed").mkdir()
    dataclasses.replace(Index.load(data), train=(), stream=Stream(dataset="finches/books")).save(Path("streamed"))
    initial = f"/cache/models--finches--small/snapshots/{40 * '0'}"
    Path("run/training.json").write_text(json.dumps(settings | {"data": ["streamed"], "initial": initial}))
    export("run", "-o", "small")
    card = ModelCard.load("small/README.md")
    assert card.data.datasets == ["finches/books"]
    assert card.data.base_model == "finches/small"


def test_a_card_that_somebody_wrote_is_kept(folder):
    header = {"license": "apache-2.0", "tags": ["whales"]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n\nKnows whales.\n")
    export(folder, "-o", "repository")
    card = ModelCard.load("repository/README.md")
    assert card.text.strip() == "Knows whales."
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["whales", "goldfinch"]
    export("repository", "-o", "repository", "--overwrite")
    assert ModelCard.load("repository/README.md").data.license == "apache-2.0"


def test_only_a_repository_is_overwritten(folder, capsys):
    export(folder, "-o", "repository", "--shard-size", "50kB")
    export(folder, "-o", "repository", code=2)
    assert "repository exists: choose another name, or give --overwrite" in capsys.readouterr().err
    export(folder, "-o", "repository", "--overwrite")
    assert [path.name for path in Path("repository").glob("model*.safetensors")] == ["model.safetensors"]
    Path("repository/notes.txt").touch()
    export(folder, "-o", "repository", "--overwrite", code=2)
    assert "also holds notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "5XB", "-1"])
def test_a_shard_size_that_is_none_is_refused(size, folder, capsys):
    export(folder, "-o", "repository", f"--shard-size={size}", code=2)
    assert "--shard-size" in capsys.readouterr().err
    assert not Path("repository").exists()
