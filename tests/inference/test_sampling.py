"""Sampling tokens."""

import math
from collections import Counter

import pytest
import torch

from goldfinch.errors import UserError
from goldfinch.inference.sampler import Sampler
from goldfinch.inference.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draws(count=2000, logits=LOGITS, seed=0, **settings):
    sampler = Sampler(Sampling(seed=seed, **settings))
    return Counter(sampler.sample(logits) for _ in range(count))


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
        ({"top_k": 3, "top_p": 0.86}, {0, 1, 2}),  # 0.5 and 0.3 are 0.842 of the three that top_k keeps
        ({"top_k": 3, "top_p": 0.84}, {0, 1}),
        ({"top_k": 2, "min_p": 0.7}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_p": 1e-9}, {0}),
    ],
)
def test_truncations_keep_exactly_the_likeliest_tokens(settings, kept):
    assert set(draws(**settings)) == kept


def test_the_same_seed_draws_the_same_and_another_differs():
    sequence = [Sampler(Sampling(seed=seed)).sample(torch.zeros(1000)) for seed in (1, 1, 2)]
    assert sequence[0] == sequence[1] != sequence[2]


def test_penalties_are_presence_plus_decaying_occurrences():
    sampler = Sampler(Sampling(presence_penalty=0.25, frequency_penalty=0.5, penalty_decay=0.9, temperature=0))
    assert sampler.sample(torch.tensor([2.0, 0.0])) == 0
    # One occurrence: 0 has lost 0.25 + 0.5.
    assert sampler.sample(torch.tensor([0.76, 0.0])) == 0
    # Now 0.9 + 1 occurrences: it has lost 0.25 + 1.9 * 0.5 = 1.2.
    assert sampler.sample(torch.tensor([1.19, 0.0])) == 1
    # Faded to 1.71, and 1 has one: 0 has lost 1.105, 1 has lost 0.75.
    assert sampler.sample(torch.tensor([0.36, 0.0])) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("penalty_decay", 1.1),
        ("logit_bias", {3: math.nan}),
        ("seed", -1),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        Sampling(**{field: value})


def test_logits_of_minus_infinity_are_never_drawn():
    assert set(draws(logits=torch.tensor([-math.inf, 0.0, -math.inf]))) == {1}


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'topp'; did you mean top_p"):
        Sampling().updated(topp=0.5)


def test_a_single_stop_string_or_token_is_not_taken_for_a_sequence():
    assert Sampling(stop="END").stop == ("END",)
    assert Sampling(stop=7).stop == (7,)


def test_logit_bias_adds_to_logits_and_names_tokens_outside_the_vocabulary():
    assert set(draws(logit_bias={3: 100.0})) == {3}
    assert 0 not in draws(logit_bias={0: -math.inf})
    with pytest.raises(UserError, match="token 4"):
        draws(logit_bias={4: 1.0})


def test_the_repetition_penalty_counts_the_prompt_and_the_output():
    sampler = Sampler(Sampling(repetition_penalty=2.0, temperature=0), prompt_ids=[0])
    # Token 0 was in the prompt: 3 / 2 < 2.
    assert sampler.sample(torch.tensor([3.0, 2.0, 0.0])) == 1
    # Now 1 was seen too, and negative logits are multiplied.
    assert sampler.sample(torch.tensor([-1.0, -1.0, -1.5])) == 2


def test_top_p_is_exact_where_many_tokens_are_needed():
    logits = torch.zeros(3000)
    logits[:10] = 1.0
    seen = draws(count=4000, logits=logits, top_p=0.9)
    assert len(seen) > 1024
    assert max(seen) < 2750


def test_of_equally_likely_tokens_top_k_keeps_as_many_as_asked_for():
    assert set(draws(logits=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), top_k=3)) == {1, 2, 3}


def test_an_infinite_bias_forces_a_token():
    assert set(draws(logit_bias={3: math.inf}, top_p=0.9)) == {3}


def test_a_nan_in_the_logits_is_named():
    with pytest.raises(UserError, match="NaN"):
        draws(logits=torch.tensor([0.0, math.nan]))
