"""Plans and texts that the tests of reading share."""

import pytest
import torch
from plans import PLANS

from goldfinch.inference import prefill
from goldfinch.inference.growing_tensor import GrowingTensor


@pytest.fixture
def small_pieces(monkeypatch):
    """Chunks and blocks so small that short texts have several."""
    monkeypatch.setattr(prefill, "CHUNK", 5)
    monkeypatch.setattr(GrowingTensor, "BLOCK", 4)
    monkeypatch.setattr(GrowingTensor, "ROOM", 1)


@pytest.fixture
def model_of(small_config, small_model):
    """model_of(plan name, dtype) -> a small model."""

    def make(name, dtype=torch.float64):
        plan, fields = PLANS[name]
        return small_model(small_config(*plan, **fields), dtype)

    return make


@pytest.fixture(scope="session")
def text():
    """text(length) -> ids of 41, with bigrams that come again."""

    def make(length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, (length,), generator=generator) * torch.randint(20, (length,), generator=generator)

    return make
