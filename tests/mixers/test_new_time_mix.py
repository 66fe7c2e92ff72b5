"""A new time mix knows its own facts: it is trained, saved, opened and counted without touching the package."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import goldfinch as gf
from goldfinch.config import TIME_MIX_KINDS, ModelConfig
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.layers.token_shift import last_token, token_shift
from goldfinch.mixers import TIME_MIXES, TimeMix, register_time_mix
from goldfinch.model import Decoder
from goldfinch.model.accounting import account
from goldfinch.model.initialization import initialize
from goldfinch.state import GoldState
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.optimizer.groups import build_optimizer

NAME = "shifted_linear"


class ShiftedLinear(TimeMix):
    """y_t = W (x_t + mu x_{t-1}): as simple as a time mix can be."""

    state_type = GoldState
    is_recurrent = True
    parameter_roles: ClassVar = {"mu": "vector"}

    @classmethod
    def state_shapes(cls, config, num_tokens):
        return {"last": (config.width,)}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.empty(config.width))
        self.output = nn.Linear(config.width, config.width, bias=False)

    def initialize_in_layer(self, layer, num_layers):
        nn.init.constant_(self.mu, 0.5)
        nn.init.normal_(self.output.weight, std=0.02)

    def forward(self, x, state, *, document_starts=None):
        before = token_shift(x, state.last if state else None, document_starts)
        return self.output(x + self.mu * before), GoldState(last=last_token(x))


class Forgetful(ShiftedLinear):
    """Does not say what its other parameter is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.extra = nn.Parameter(torch.zeros(config.width))


@pytest.fixture
def registered(monkeypatch):
    def register(cls):
        register_time_mix(NAME, cls)

    yield register
    TIME_MIXES.pop(NAME, None)
    if NAME in TIME_MIX_KINDS:
        TIME_MIX_KINDS.remove(NAME)


def config_of(*plan):
    return ModelConfig(vocab_size=257, width=64, time_mixes=plan, head_size=16, channel_mix="rwkv")


def test_it_is_trained_saved_opened_and_counted(registered, tmp_path):
    registered(ShiftedLinear)
    config = config_of(NAME, NAME, "gold")
    model = Decoder(config)
    initialize(model, 0)
    lm = LanguageModel(model.eval(), ByteTokenizer())

    ids = lm.encode("Call me Ishmael. " * 4)[None]
    optimizer = build_optimizer(model, OptimizerConfig())
    losses = []
    for _ in range(8):
        logits, _ = model(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]

    lm.save(tmp_path / "model")
    reloaded = gf.load(tmp_path / "model")
    assert torch.equal(reloaded.logits(ids), lm.logits(ids))
    context = reloaded.read("Call me Ishmael.")
    whole = reloaded.logits(reloaded.encode("Call me Ishmael.")[None])[0, -1]
    torch.testing.assert_close(context.logits, whole, rtol=0, atol=1e-4)
    context.save(tmp_path / "text.gfc")
    torch.testing.assert_close(reloaded.open(tmp_path / "text.gfc").logits, whole, rtol=0, atol=1e-4)
    assert len(reloaded.generate(["a", "bc"], max_tokens=4, seed=0)) == 2

    costs = account(config, 128)
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.state_bytes > 0


def test_a_parameter_that_no_rule_names_is_refused(registered):
    registered(Forgetful)
    with pytest.raises(KeyError, match=r"Forgetful\.extra has no role"):
        build_optimizer(Decoder(config_of(NAME, "gold")), OptimizerConfig())
