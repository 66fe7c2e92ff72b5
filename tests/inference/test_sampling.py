"""Drawing tokens."""

import math
from collections import Counter

import pytest
import torch

from goldfinch.errors import UserError
from goldfinch.inference.sampler import Sampler
from goldfinch.inference.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draws(count=2000, logits=LOGITS, seed=0, **settings):
    sampler = Sampler(Sampling(**settings), seed)
    return Counter(sampler.draw(logits) for _ in range(count))


def test_plain_sampling_follows_the_probabilities():
    counts = draws()
    assert all(abs(counts[i] / 2000 - p) < 0.03 for i, p in enumerate((0.5, 0.3, 0.15, 0.05)))


def test_temperature_sharpens_and_zero_is_greedy():
    assert draws(temperature=0.0) == {0: 2000}
    assert draws(temperature=0.5)[0] / 2000 == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.03)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_p": 1e-9}, {0}),
    ],
)
def test_truncations_keep_exactly_the_likeliest_tokens(settings, kept):
    assert set(draws(**settings)) == kept


def test_the_same_seed_draws_the_same_and_another_differs():
    sequence = [Sampler(Sampling(), seed).draw(torch.zeros(1000)) for seed in (1, 1, 2)]
    assert sequence[0] == sequence[1] != sequence[2]


def test_penalties_are_presence_plus_decaying_occurrences():
    sampler = Sampler(Sampling(presence_penalty=0.25, frequency_penalty=0.5, penalty_decay=0.9, temperature=0), seed=0)
    assert sampler.draw(torch.tensor([2.0, 0.0])) == 0
    # One occurrence: 0 has lost 0.25 + 0.5.
    assert sampler.draw(torch.tensor([0.76, 0.0])) == 0
    # Now 0.9 + 1 occurrences: it has lost 0.25 + 1.9 * 0.5 = 1.2.
    assert sampler.draw(torch.tensor([1.19, 0.0])) == 1
    # Faded to 1.71, and 1 has one: 0 has lost 1.105, 1 has lost 0.75.
    assert sampler.draw(torch.tensor([0.36, 0.0])) == 0


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("min_p", 2.0)]
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        Sampling(**{field: value})


def test_logits_of_minus_infinity_are_never_drawn():
    assert set(draws(logits=torch.tensor([-math.inf, 0.0, -math.inf]))) == {1}
