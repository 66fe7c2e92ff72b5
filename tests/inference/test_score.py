"""Log-probabilities of texts, against the whole forward."""

import math

import pytest
import torch

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel

TEXT = "Call me Ishmael. Some years ago"


@pytest.fixture(scope="module")
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=300)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def logprobs(lm, ids):
    """Of the second and all later tokens, by the whole forward."""
    ids = torch.tensor(ids)
    rows = lm.logits(ids[None])[0].double().log_softmax(-1)
    return rows[:-1].gather(1, ids[1:, None])[:, 0]


def test_a_text_is_scored_token_by_token_after_an_end_of_text(lm):
    score = lm.score(TEXT)
    expected = logprobs(lm, [lm.tokenizer.end_of_text, *TEXT.encode()])
    assert score.token_ids == tuple(TEXT.encode())
    torch.testing.assert_close(torch.tensor(score.logprobs).double(), expected, rtol=0, atol=1e-4)
    total = expected.sum().item()
    assert score.total == pytest.approx(total, abs=1e-3)
    assert score.nats_per_token == pytest.approx(-total / len(TEXT), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(-total / len(TEXT.encode()) / math.log(2), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-total / len(TEXT)), rel=1e-4)


def test_continuations_are_scored_after_a_prefix_that_is_read_once(lm, monkeypatch):
    from goldfinch.inference import sequence

    lengths = []

    def counting(model, ids, states, original=sequence.read_lower):
        lengths.append(ids.numel())
        return original(model, ids, states)

    monkeypatch.setattr(sequence, "read_lower", counting)
    prefix, continuations = "The capital of France is", [" Paris", " Rome", " a city"]
    scores = lm.score(prefix=prefix, continuations=continuations)
    assert lengths[0] == len(prefix)
    assert sum(lengths) <= len(prefix) + sum(map(len, continuations))
    for continuation, score in zip(continuations, scores, strict=True):
        expected = logprobs(lm, [*prefix.encode(), *continuation.encode()])[len(prefix) - 1 :]
        torch.testing.assert_close(torch.tensor(score.logprobs).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 11, 40])
def test_a_context_scores_what_follows_it_and_stays_as_it_is(length, lm):
    context = lm.read(TEXT)
    before = context.logits.clone()
    text = "x" * length
    expected = logprobs(lm, [*TEXT.encode(), *text.encode()])[len(TEXT) - 1 :]
    torch.testing.assert_close(torch.tensor(context.score(text).logprobs).double(), expected, rtol=0, atol=1e-4)
    assert context.ids() == list(TEXT.encode())
    assert torch.equal(context.logits, before)


def test_the_greedy_continuation_is_recognised(lm):
    context = lm.read(TEXT)
    greedy = context.fork().generate(max_tokens=4, temperature=0, ignore_eos=True).token_ids
    assert context.score(list(greedy)).is_greedy
    assert not context.score([*greedy[:-1], (greedy[-1] + 1) % 256]).is_greedy


def test_token_ids_without_a_tokenizer_are_scored_from_the_second_on(lm):
    bare = LanguageModel(lm.model, None)
    score = bare.score([5, 6, 7])
    assert score.token_ids == (6, 7)
    torch.testing.assert_close(torch.tensor(score.logprobs).double(), logprobs(lm, [5, 6, 7]), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="at least two"):
        bare.score([5])


@pytest.mark.parametrize(
    "arguments", [{}, {"text": "a", "prefix": "b"}, {"prefix": "a"}, {"prefix": "a", "continuations": " Paris"}]
)
def test_a_text_or_a_prefix_with_a_list_of_continuations_not_both(arguments, lm):
    with pytest.raises(UserError, match="score takes"):
        lm.score(**arguments)
