"""What `push_to_hub` sends is a complete repository."""

import shutil

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from test_models import model_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.huggingface import GoldFinchForCausalLM
from goldfinch.huggingface.tokenization import to_huggingface


@pytest.fixture
def pushed(tmp_path, monkeypatch):
    """The folder that takes the place of the Hub's repository OWNER/NAME."""
    remote = tmp_path / "remote"

    def create_repo(_, repository, **__):
        (remote / repository).mkdir(parents=True, exist_ok=True)
        return type("Created", (), {"repo_id": repository})

    def create_commit(_, repo_id, operations, **__):
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, remote / repo_id / operation.path_in_repo)

    def load_card(repository, **_):
        path = remote / repository / "README.md"
        if not path.exists():
            raise EntryNotFoundError(f"{repository} has no README.md")
        return ModelCard(path.read_text())

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", load_card)
    return remote / "finches" / "small"


@pytest.mark.parametrize("max_shard_size", ["50GB", "100kB"])
def test_push_to_hub_sends_a_repository_that_others_load(max_shard_size, pushed, same_bits):
    model = model_of()
    model.resize_token_embeddings(257)
    model.push_to_hub("finches/small", max_shard_size=max_shard_size, tags=["whales"])
    to_huggingface(ByteTokenizer()).push_to_hub("finches/small")
    names = {path.name for path in pushed.iterdir()}
    assert {"config.json", "generation_config.json", "modeling_goldfinch.py", "README.md"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert ("model.safetensors.index.json" in names) == (max_shard_size == "100kB")
    assert "whales" in (pushed / "README.md").read_text()
    assert isinstance(AutoModelForCausalLM.from_pretrained(pushed), GoldFinchForCausalLM)
    assert len(AutoTokenizer.from_pretrained(pushed)) == 257
    stored = gf.load(pushed, dtype="float32").model.state_dict()
    assert same_bits(stored, model.model.decoder(model.lm_head).state_dict())
