"""A Finch that we export as `.pth`, judged by the Python package `rwkv`, which is its authors' own."""

from pathlib import Path

import pytest
import torch

from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.model_folder import save_model_folder
from goldfinch.config import ModelConfig

TOLERANCE = 1e-5  # the logits have a standard deviation of about 0.6


@pytest.fixture
def rwkv(monkeypatch):
    """rwkv(path) -> their model of a `.pth`, in fp32 and plain PyTorch."""
    for switch in ("RWKV_JIT_ON", "RWKV_CUDA_ON", "RWKV_V7_ON"):
        monkeypatch.setenv(switch, "0")
    from rwkv.model import RWKV  # reads the switches when it is imported

    return lambda path: RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")


@pytest.mark.parametrize("ranks", [{}, {"shift_rank": 64, "decay_rank": 128}], ids=["1.6B", "7B"])
@torch.inference_mode()
def test_rwkv_has_our_logits_for_a_whole_text_and_token_by_token(ranks, rwkv, small_model, tmp_path: Path):
    model = small_model(ModelConfig(vocab_size=257, width=128, time_mixes=("finch",) * 3, **ranks), torch.float32)
    save_model_folder(tmp_path / "finch", model.config, model.state_dict(), None)
    export_reference(tmp_path / "finch", tmp_path / "finch.pth")
    ids = list("Call me Ishmael. — Зовите меня Измаил.".encode())
    expected = model(torch.tensor([ids]))[0][0]
    assert expected.std() > 0.3

    theirs = rwkv(tmp_path / "finch.pth")
    whole, _ = theirs.forward(ids, None, full_output=True)
    torch.testing.assert_close(whole, expected, rtol=0, atol=TOLERANCE)
    state = None
    for id, logits in zip(ids, expected, strict=True):
        step, state = theirs.forward([id], state)
        torch.testing.assert_close(step, logits, rtol=0, atol=TOLERANCE)
