"""Folders with small models, ready at once."""

import pytest
import torch

from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.data.tokenizers import ByteTokenizer


@pytest.fixture
def small_run(small_config, small_model, tmp_path, monkeypatch):
    """The folder "run" with a small model that reads bytes; the working directory is the one it is in."""
    monkeypatch.chdir(tmp_path)
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    folder = tmp_path / "run"
    folder.mkdir()
    save_description(folder, config, ByteTokenizer())
    save_weights(folder, small_model(config, torch.float32).state_dict())
    return "run"


@pytest.fixture
def goldfinch(capsys):
    """goldfinch(*args, code=0) runs a command that must end with this exit code; returns stdout and stderr."""
    from goldfinch.cli.main import run

    def call(*args, code=0):
        capsys.readouterr()
        returned = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert returned == code, captured
        return captured

    return call
