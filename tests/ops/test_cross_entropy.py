"""The loss of large vocabularies, a few tokens at a time."""

import pytest
import torch
from torch.nn import functional as F

from goldfinch.ops import cross_entropy
from goldfinch.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_per_token


def inputs(dtype, tokens=23, width=8, vocab=31):
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, width, dtype=dtype), torch.randn(vocab, width, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(vocab, (tokens,))


@pytest.mark.parametrize("at_once", [1, 31 * 5, 31 * 23, 1 << 24])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_whole(at_once, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = inputs(dtype)
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    actual = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    wanted, got = (torch.autograd.grad(loss / 7, (hidden, weight)) for loss in (expected, actual))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_gradients_agree_with_finite_differences():
    hidden, weight, targets = inputs(torch.float64, tokens=4, width=3, vocab=5)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


@pytest.mark.parametrize("at_once", [31 * 5, 1 << 24])
def test_a_scale_is_a_factor_of_loss_and_gradients_and_a_retained_graph_gives_them_again(at_once, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = inputs(torch.float64)
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum") / 7
    wanted = torch.autograd.grad(expected, (hidden, weight))
    actual = linear_cross_entropy(hidden, weight, targets, scale=1 / 7)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for factor in (1, 1, 3):
        got = torch.autograd.grad(factor * actual, (hidden, weight), retain_graph=True)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, factor * other, rtol=0, atol=1e-12)
            one.zero_()  # whoever has a gradient may overwrite it


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen):
    hidden, weight, targets = inputs(torch.float32)
    (hidden, weight)[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets).backward()
    assert (hidden, weight)[frozen].grad is None
    assert (hidden, weight)[1 - frozen].grad.abs().sum() > 0


@pytest.mark.parametrize("at_once", [1, 31 * 5, 1 << 24])
def test_tokens_that_do_not_count_are_as_if_they_were_not_there(at_once, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = inputs(torch.float64)
    counted = torch.arange(len(targets)) % 3 != 1
    expected = F.cross_entropy(F.linear(hidden[counted], weight), targets[counted], reduction="sum")
    actual = linear_cross_entropy(hidden, weight, targets, counted)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    wanted, got = (torch.autograd.grad(loss, (hidden, weight)) for loss in (expected, actual))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert got[0][~counted].abs().max() == 0
    nothing = linear_cross_entropy(hidden, weight, targets, torch.zeros_like(counted))
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(nothing, (hidden, weight)))


@pytest.mark.parametrize("at_once", [1, 31 * 5, 1 << 24])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_losses_of_single_tokens_add_up_to_the_sum(at_once, low, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
        total = linear_cross_entropy(hidden, weight, targets)
        losses = linear_cross_entropy_per_token(hidden, weight, targets)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses.sum(), total, rtol=1e-6, atol=0)
    assert not losses.requires_grad


def test_under_autocast_products_are_rounded_and_the_softmax_is_not():
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
        actual = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    wanted, got = (torch.autograd.grad(loss, (hidden, weight)) for loss in (expected, actual))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * other.abs().max().item())


def test_no_tensor_of_all_logits_is_made(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", 31 * 5)
    hidden, weight, targets = inputs(torch.float32, tokens=50)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, targets).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 50 * 31 * 4
