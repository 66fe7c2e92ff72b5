"""Requests that share what they can: the numbers of each read alone, with fewer tokens computed."""

import random

import pytest

from goldfinch.evaluation import scheduler
from goldfinch.evaluation.scheduler import Request, Scheduler


def requests_of_every_form():
    """Few-shot prefixes, choices of any length, single letters, texts of one token and long ones, repetitions."""
    words = random.Random(0)

    def tokens(length):
        return tuple(words.choices(range(257), k=length))

    shots, header = tokens(60), tokens(9)
    requests = []
    for number in range(6):
        question = shots + tokens(5 + number)
        requests += [Request(question, (letter,)) for letter in (65, 66, 67, 68)]
        sentence = header + tokens(30)
        requests += [Request(sentence, tokens(length)) for length in (1, 4, 13)]
        requests.append(Request(tokens(1 + number), tokens(1 + 3 * number)))
    requests += [requests[3], Request(shots, (65, 66))]
    words.shuffle(requests)
    return requests


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_requests_are_scored_as_if_each_were_read_alone_at_any_batch_size(batch_size, lm, direct):
    requests = requests_of_every_form()
    engine = Scheduler(lm, batch_size=batch_size)
    answers = {}
    results = engine.score(requests, lambda number, *result: answers.__setitem__(number, result))
    for number, (request, (logprob, is_greedy)) in enumerate(zip(requests, results, strict=True)):
        expected, expected_greedy = direct(lm, request.context, request.continuation)
        assert logprob == pytest.approx(expected, abs=1e-4 * len(request.continuation))
        assert is_greedy == expected_greedy
        assert answers[number] == (logprob, is_greedy)
    assert engine.counts.asked == sum(len(each.context) + len(each.continuation) - 1 for each in requests)
    assert engine.counts.computed < engine.counts.asked / 3


def test_texts_longer_than_a_chunk_are_scored_too(lm, direct, monkeypatch):
    monkeypatch.setattr(scheduler, "CHUNK_SIZE", 20)
    requests = requests_of_every_form()
    for request, (logprob, _) in zip(requests, Scheduler(lm).score(requests), strict=True):
        expected, _ = direct(lm, request.context, request.continuation)
        assert logprob == pytest.approx(expected, abs=1e-4 * len(request.continuation))


def test_few_shot_examples_are_computed_once(lm):
    shots = tuple(range(200))
    requests = [Request((*shots, 200 + question), (letter,)) for question in range(20) for letter in range(4)]
    engine = Scheduler(lm)
    engine.score(requests)
    assert engine.counts.asked == 80 * 201
    assert engine.counts.computed == 200 + 20


def test_contexts_are_read_once_and_are_each_their_own(lm):
    shots = list(range(100))
    texts = [shots + [200 + number] * (number + 1) for number in range(4)] + [shots]
    engine = Scheduler(lm)
    contexts = dict(engine.read(texts))
    assert {number: context.ids() for number, context in contexts.items()} == dict(enumerate(texts))
    assert (engine.counts.asked, engine.counts.computed) == (510, 110)
    assert contexts[2].read([1]).ids()[-1] == 1
    assert contexts[3].ids() == texts[3]
