"""Continuations of one context together: each as if the whole text were read alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import PLANS, WITH_GOLD, small_sequence

from goldfinch.inference.continuations import Continuation, score_continuations


def expected(model, past, continuation):
    """By the whole forward: log-probabilities of the scored tokens, and whether all are the best."""
    ids = torch.tensor([*past, *continuation.ids])
    logits = model(ids[None])[0][0].double()
    count = continuation.num_scored
    rows = logits[-count - 1 : -1]
    logprobs = rows.log_softmax(-1).gather(1, ids[-count:, None])[:, 0]
    return logprobs, bool((rows.argmax(-1) == ids[-count:]).all())


def check(model, sequence, past, continuations):
    results = score_continuations(sequence, continuations)
    assert len(results) == len(continuations)
    for continuation, (logprobs, is_greedy) in zip(continuations, results, strict=True):
        wanted, wanted_greedy = expected(model, past, continuation)
        torch.testing.assert_close(torch.tensor(logprobs).double(), wanted, rtol=0, atol=1e-5)
        assert is_greedy == wanted_greedy
    assert sequence.key_cache.ids(0, len(sequence)).tolist() == past


@pytest.fixture(scope="module", params=PLANS)
def model(request, small_config, small_model):
    plan, fields = PLANS[request.param]
    return small_model(small_config(*plan, **fields))


@st.composite
def rows(draw, after_text):
    ids = draw(st.lists(st.integers(0, 40), min_size=1 if after_text else 2, max_size=14))
    return Continuation(tuple(ids), draw(st.integers(1, len(ids) if after_text else len(ids) - 1)))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 8, 23])
@given(data=st.data())
def test_any_rows_after_any_text_are_scored_as_alone(model, text, length, data):
    continuations = data.draw(st.lists(rows(length > 0), min_size=1, max_size=5))
    past = text(length).tolist()
    sequence = small_sequence(model)
    if past:
        sequence.append(torch.tensor(past))
    check(model, sequence, past, continuations)


def test_continuations_that_differ_in_their_last_token_are_read_once(model, text, monkeypatch):
    sequence, past = small_sequence(model), text(9).tolist()
    sequence.append(torch.tensor(past))
    shapes = []
    lower = type(model).lower

    def counting(self, x0, states, **options):
        shapes.append(tuple(x0.shape[:2]))
        return lower(self, x0, states, **options)

    monkeypatch.setattr(type(model), "lower", counting)
    letters = [Continuation((5, 6, 7, letter), 1) for letter in range(4)]
    score_continuations(sequence, letters)
    assert shapes[-1] == (1, 3)
    monkeypatch.undo()
    check(model, sequence, past, letters)


@pytest.mark.parametrize("plan", WITH_GOLD)
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_the_greedy_continuation_is_recognised_among_others(plan, budget, model_of, text):
    model, past = model_of(plan), text(11).tolist()
    ids = list(past)
    for _ in range(3):
        ids.append(int(model(torch.tensor(ids)[None])[0][0, -1].argmax()))
    best = tuple(ids[len(past) :])
    other = (*best[:-1], (best[-1] + 1) % 41)
    sequence = small_sequence(model, budget=budget)
    sequence.append(torch.tensor(past))
    for _ in range(2):  # the second time from what is kept
        (_, greedy), (_, not_greedy) = score_continuations(sequence, [Continuation(best, 3), Continuation(other, 3)])
        assert greedy
        assert not not_greedy
        check(model, sequence, past, [Continuation(best, 3), Continuation(other, 3)])


def test_continuations_see_quantized_latents_as_if_they_were_appended(small_config, small_model, text):
    from goldfinch.cache.latents import latent_format
    from goldfinch.inference.score import append_and_score

    model = small_model(small_config("finch_c2", "gold", "gold"))
    past, ids = text(13), text(9, seed=1)
    sequence = small_sequence(model, latent_format("int8", model.config.latent_width))
    sequence.append(past)
    sequence.measure_quantization()
    ((together, _),) = score_continuations(sequence, [Continuation(tuple(ids.tolist()), len(ids))])
    alone, _ = append_and_score(sequence.fork(), ids)
    assert together == pytest.approx(alone, abs=1e-5)
