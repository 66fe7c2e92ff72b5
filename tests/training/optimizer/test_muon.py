"""Muon with AdamW: who gets which, one optimizer to the outside, and the same results on shards."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.loss import next_token_loss
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate
from goldfinch.training.trainer import Trainer

MUON = OptimizerConfig(kind="muon", learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2, weight_decay=0.1)


@pytest.fixture
def model(small_config):
    model = Decoder(small_config("finch_c2", "gold"))
    initialize(model, 0)
    return model


def backward(model, seed):
    ids = torch.randint(41, (2, 12), generator=torch.Generator().manual_seed(seed))
    next_token_loss(model, ids).backward()


def test_muon_takes_the_matrices_between_hidden_states_and_adamw_the_rest(model):
    optimizer = build_optimizer(model, MUON)
    backward(model, 0)
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()
    by_muon = {name for name, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]}
    by_adamw = {name for name, p in model.named_parameters() if "exp_avg" in optimizer.state[p]}
    matrices = {name for name, p in model.named_parameters() if name.endswith(".weight") and p.ndim == 2}
    assert by_muon == matrices - {"embedding.weight", "head.weight"}
    assert "token_cat.up.weight" in by_muon
    assert by_adamw == {name for name, _ in model.named_parameters()} - by_muon


def test_its_parts_are_torchs_own_optimizers(model, small_config):
    ours, theirs = model, Decoder(small_config("finch_c2", "gold"))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, MUON)
    inside = {
        name: p
        for name, p in theirs.named_parameters()
        if name.endswith("weight") and p.ndim == 2 and name.startswith(("blocks", "token_cat"))
    }
    muon = torch.optim.Muon(inside.values(), 1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    norms = [p for name, p in theirs.named_parameters() if "norm" in name]
    adamw = torch.optim.AdamW(norms, 1e-2, betas=(0.9, 0.99), weight_decay=0, fused=True)
    for step in range(3):
        set_learning_rate(optimizer, 1e-2)
        for name, p in ours.named_parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            theirs.get_parameter(name).grad = p.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    for name, p in theirs.named_parameters():
        if name in inside or "norm" in name:
            assert torch.equal(ours.get_parameter(name), p), name


def test_a_step_is_as_large_as_adamws_so_that_learning_rates_carry_over(model):
    optimizer = build_optimizer(model, MUON)
    set_learning_rate(optimizer, 1e-2)
    weight = model.blocks[0].time_mix.value.weight
    before = weight.detach().clone()
    backward(model, 0)
    weight.grad.normal_(generator=torch.Generator().manual_seed(0))
    optimizer.step()
    change = (weight - before * (1 - 1e-2 * 0.1)).square().mean().sqrt().item()
    assert 0.1e-2 < change < 0.4e-2  # AdamW's rms is about 0.2 to 0.4 of the learning rate (arXiv 2502.16982)


def test_its_state_survives_a_state_dict(model, small_config):
    def train(model, optimizer, steps):
        for step in steps:
            backward(model, step)
            set_learning_rate(optimizer, 1e-2 / (1 + step))
            optimizer.step()
            optimizer.zero_grad()

    optimizer = build_optimizer(model, MUON)
    train(model, optimizer, [0, 1])
    again = Decoder(small_config("finch_c2", "gold"))
    again.load_state_dict(model.state_dict())
    loaded = build_optimizer(again, MUON)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, [2, 3])
    train(again, loaded, [2, 3])
    for name, p in model.named_parameters():
        assert torch.equal(again.get_parameter(name), p), name


def test_a_run_with_muon_learns_and_resumes_to_the_bit(settings, silent, tmp_path):
    whole, parts = silent(), silent()
    config = settings(optimizer=MUON, steps=8, sample_every=0, validate_every=8)
    Trainer(dataclasses.replace(config, output=tmp_path / "whole"), whole).train()
    assert whole.losses[-1] < whole.losses[0] - 1
    with pytest.raises(RuntimeError, match="power failure"):
        Trainer(config, _Dies(parts, 4)).train()
    Trainer(config, parts, resume=True).train()
    assert parts.losses == whole.losses[:4] + whole.losses[2:]  # after step 4, before its checkpoint


class _Dies:
    def __init__(self, reporter, step):
        self._reporter, self._step = reporter, step

    def __getattr__(self, name):
        return getattr(self._reporter, name)

    def step(self, record, done):
        self._reporter.step(record, done)
        if record["step"] == self._step:
            raise RuntimeError("power failure")


def test_on_sharded_matrices_it_computes_the_same_as_on_whole_ones(tmp_path):
    program = Path(__file__).with_name("muon_program.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", program, tmp_path / "meeting", "2"]
    ranks = [
        subprocess.Popen([*map(str, command), str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
