"""Training on the answers of conversations: what counts in the loss, the gradient and the validation."""

import contextlib
import json

import pytest
import torch

from goldfinch.data.prepare import prepare
from goldfinch.data.shards import TokenDataset
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.training.gradient import accumulate
from goldfinch.training.loss import count_targets, next_token_loss
from goldfinch.training.parallel.processes import SINGLE_PROCESS
from goldfinch.training.trainer import Trainer


@pytest.fixture
def model(small_config, small_model):
    return small_model(small_config("finch_c2", "gold"), torch.float32).requires_grad_(True)


@pytest.fixture
def batch(text):
    """Windows of two documents, and half of their tokens."""
    windows = torch.stack([text(13, seed=seed) for seed in range(4)])
    windows[:, 6] = 40
    answers = torch.rand(windows.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return windows, answers


@pytest.mark.parametrize("reset_after", [None, 40])
def test_the_loss_is_the_sum_over_answers(model, batch, reset_after):
    windows, answers = batch
    nothing = torch.zeros_like(answers)
    total = 0.0
    for row, column in answers.nonzero().tolist():
        if column:
            one = nothing.clone()
            one[row, column] = True
            total += next_token_loss(model, windows, reset_after, one).item()
    assert next_token_loss(model, windows, reset_after, answers).item() == pytest.approx(total, rel=1e-4)
    starts = 0 if reset_after is None else int(answers[:, 7].sum())
    assert count_targets(windows, reset_after, answers) == int(answers[:, 1:].sum()) - starts
    assert next_token_loss(model, windows, reset_after, nothing).item() == 0


def test_the_gradient_is_of_the_mean_over_answers_whatever_the_micro_batch(model, batch):
    windows, answers = batch
    (next_token_loss(model, windows, None, answers) / count_targets(windows, None, answers)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    for micro_batch_size in (0, 1, 3):
        model.zero_grad()
        accumulate(model, windows, micro_batch_size, SINGLE_PROCESS, contextlib.nullcontext(), answers=answers)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_run_on_answers_learns_and_validates_them_alone(settings, silent, tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(40)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    runs = {}
    for loss_on in ("all", "answers"):
        folder = tmp_path / loss_on
        prepare([tmp_path / "chat.jsonl"], folder, ByteTokenizer(), validation_fraction=0.2, loss_on=loss_on)
        config = settings(data=(str(folder),), output=tmp_path / "runs" / loss_on, steps=2, sample_every=0)
        seen = silent()
        runs[loss_on] = Trainer(config, seen).train(), seen.losses
    validation = TokenDataset.open(tmp_path / "answers", "validation")
    answers = validation.answers(0, len(validation))
    assert runs["all"][0].tokens == len(validation) - 1
    assert runs["answers"][0].tokens == answers[1:].sum() < len(validation) / 2
    assert runs["answers"][1] != runs["all"][1]
