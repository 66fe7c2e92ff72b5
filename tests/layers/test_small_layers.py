"""Normalisation, rotary positions and token shift against their formulas."""

import math

import pytest
import torch

from goldfinch.config import RopeConfig
from goldfinch.layers.norm import rms_normalize
from goldfinch.layers.rotary import rotate
from goldfinch.layers.token_shift import DataDependentLerp, token_shift


@pytest.fixture
def x():
    """(B, H, T, N)."""
    return torch.randn(2, 3, 11, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# rms_normalize


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-8, 1e-12, 0.0])
def test_rms_normalize_adds_its_epsilon_outside_the_root(size):
    row = torch.tensor([3.0, -4.0, 0.0, 5.0], dtype=torch.float64) * size
    rms = math.sqrt(50 / 4) * size
    torch.testing.assert_close(rms_normalize(row), row / (rms + 1e-8), rtol=1e-12, atol=0)


def test_rms_normalize_computes_bf16_in_fp32():
    row = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0)).bfloat16() * 100
    expected = (row.double() / row.double().square().mean(-1, keepdim=True).sqrt()).bfloat16()
    assert rms_normalize(row).dtype == torch.bfloat16
    torch.testing.assert_close(rms_normalize(row), expected, rtol=2**-8, atol=0)


# rotary positions


def test_rotation_turns_each_pair_by_its_own_angle(x):
    rope = RopeConfig(base=500.0, rescale=4.0, rebase=3.0)
    expected = torch.empty_like(x)
    for t in range(x.shape[2]):
        for i in range(4):
            angle = (5 + t) / 4.0 * (500.0 * 3.0) ** (-2 * i / 8)
            turned = torch.complex(x[:, :, t, 2 * i], x[:, :, t, 2 * i + 1]) * complex(math.cos(angle), math.sin(angle))
            expected[:, :, t, 2 * i], expected[:, :, t, 2 * i + 1] = turned.real, turned.imag
    torch.testing.assert_close(rotate(x, 5, rope), expected, rtol=0, atol=1e-12)


def test_scores_depend_on_the_distance_only(x):
    queries, keys = x, x.flip(2)

    def scores(start):
        return rotate(queries, start, RopeConfig()) @ rotate(keys, start, RopeConfig()).transpose(-1, -2)

    torch.testing.assert_close(scores(1000), scores(0), rtol=0, atol=1e-10)
    assert (scores(0) - queries @ keys.transpose(-1, -2)).abs().max() > 0.1


def test_a_start_position_equals_a_slice_of_the_whole(x):
    torch.testing.assert_close(
        rotate(x[:, :, 4:], 4, RopeConfig()), rotate(x, 0, RopeConfig())[:, :, 4:], rtol=0, atol=1e-12
    )


def test_rescale_divides_positions_and_rebase_multiplies_the_base(x):
    stretched = rotate(x, 0, RopeConfig(rescale=2.0))[:, :, ::2]
    torch.testing.assert_close(stretched, rotate(x[:, :, ::2], 0, RopeConfig()), rtol=0, atol=1e-12)
    assert torch.equal(rotate(x, 0, RopeConfig(base=100.0, rebase=7.0)), rotate(x, 0, RopeConfig(base=700.0)))


def test_no_rope_changes_nothing_and_bf16_stays_bf16(x):
    assert torch.equal(rotate(x, 3, None), x)
    assert rotate(x.bfloat16(), 3, RopeConfig()).dtype == torch.bfloat16


# token shift


def test_token_shift_starts_with_zero_or_with_what_came_before(x):
    x = x[0]
    last = torch.full((3, 8), 9.0, dtype=torch.float64)
    assert torch.equal(token_shift(x, None), torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1))
    assert torch.equal(token_shift(x, last)[:, 0], last)
    assert torch.equal(token_shift(x, last)[:, 1:], x[:, :-1])
    assert torch.equal(token_shift(x[:, :1], last), last[:, None])


def test_data_dependent_lerp_is_the_papers_formula(x, randomized):
    layer = randomized(DataDependentLerp(8, ("r", "k", "v"), rank=3))
    now, before = x[0], x[1]
    mixed = now + (before - now) * layer.mu_x
    outputs = layer(now, before)
    assert len(outputs) == 3
    for index, output in enumerate(outputs):
        a = layer.low_rank.a[:, 3 * index : 3 * index + 3]
        weight = layer.mu[index] + torch.tanh(mixed @ a) @ layer.low_rank.b[index]
        torch.testing.assert_close(output, now + (before - now) * weight, rtol=0, atol=1e-12)
