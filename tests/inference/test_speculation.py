"""Guessing changes how long writing takes, never what is written."""

import pytest
import torch
from plans import PLANS

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.sequence import TokenSequence
from goldfinch.inference.speculation import PromptLookup, Speculation

TEXT = "the sea, the whale and the sea, the whale and the ship; the sea, "


@pytest.fixture
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids[None])[0][0].float()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("plan", PLANS)
def test_a_trial_gives_the_whole_forwards_logits_whatever_was_kept_of_those_before(plan, model_of, text):
    model = model_of(plan, torch.float32)
    ids, sequence = text(60), TokenSequence(model, None, 0)
    sequence.append(ids[:11])
    for trial, wanted in ((3, 1), (4, 2), (1, 1), (5, 5), (6, 1), (6, 1), (6, 1), (4, 3)):
        before, tried = len(sequence), min(trial, sequence.room_in_block())
        kept = min(tried, wanted)
        logits = sequence.try_tokens(ids[before : before + tried])
        expected = logits_of(model, ids[: before + tried])[before:]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
        sequence.keep(kept)
        assert len(sequence) == before + kept
    # All the rest goes on from there as if nothing had been tried.
    fork, end = sequence.fork(), len(sequence)
    torch.testing.assert_close(sequence.logits, logits_of(model, ids[:end])[-1], atol=2e-4, rtol=0)
    fork.append(ids[end:])
    torch.testing.assert_close(fork.logits, logits_of(model, ids)[-1], atol=2e-4, rtol=0)
    sequence.trim(end - 2)
    torch.testing.assert_close(sequence.logits, logits_of(model, ids[: end - 2])[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 3, "temperature": 0.1}])
@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize("budget", [0, "1GiB"])
def test_the_text_is_the_one_written_without_guesses(lm, sampling, penalty, budget):
    texts, counts = [], []
    for most in (0, 1, 8):
        speculation = Speculation(most=most)
        context = lm.read(TEXT, budget=budget)
        settings = {"max_tokens": 60, "frequency_penalty": penalty, "speculation": speculation} | sampling
        texts.append("".join(context.generate(**settings)))
        counts.append(speculation.guessed)
        assert len(context) == len(lm.encode(TEXT)) + 60
    assert texts[0] == texts[1] == texts[2]
    assert counts[0] == 0 < counts[1]


def test_right_guesses_save_steps_and_are_counted(lm):
    speculation = Speculation()
    list(lm.read(TEXT).generate(max_tokens=100, temperature=0, speculation=speculation))
    # A small model that always takes the likeliest token soon repeats itself.
    assert speculation.right > 20
    assert speculation.steps + speculation.right == speculation.written == 100
    assert f"{speculation.right} of {speculation.guessed}" in speculation.summary()


def test_a_reader_who_stops_early_finds_the_context_where_the_text_ended(lm):
    whole = lm.read(TEXT)
    list(whole.generate(max_tokens=60, temperature=0))
    for count in range(1, 40):
        context = lm.read(TEXT)
        pieces = context.generate(max_tokens=60, temperature=0)
        text = "".join(next(pieces) for _ in range(count))
        pieces.close()
        ids = context.ids()
        assert ids == whole.ids(0, len(ids))
        assert lm.tokenizer.decode(ids[len(TEXT) :]).removesuffix("\ufffd") == text.removesuffix("\ufffd")
        torch.testing.assert_close(context.logits, lm.read(ids).logits, atol=1e-4, rtol=0)


def test_integer_latents_are_certified_on_what_was_written_too(lm):
    context = lm.read(TEXT, latents="int8")
    speculation = Speculation()
    list(context.generate(max_tokens=20, temperature=0, speculation=speculation))
    assert speculation.guessed == 0
    assert context.measure_quantization().tokens == len(context)


@pytest.mark.parametrize(
    ("ids", "guess"),
    [([1, 2, 3, 4, 1, 2], [3, 4, 1]), ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2]), ([1, 1, 1], [1]),
     ([5, 1, 2, 7, 9, 1, 2, 8, 5, 1, 2], [7, 9, 1]), ([1, 2, 3], []), ([1], []), ([], [])],
)  # fmt: skip
def test_a_guess_is_what_followed_the_longest_and_latest_match(ids, guess):
    assert PromptLookup(ids).guess(3) == guess


def test_the_lookup_goes_on_with_the_text():
    lookup = PromptLookup([1, 2, 3])
    lookup.add([1])
    assert lookup.guess(9) == []
    lookup.add([2])
    assert lookup.guess(9) == [3, 1, 2]
    assert lookup.guess(0) == []


def test_fewer_are_guessed_and_more_seldom_while_guesses_are_wrong():
    speculation = Speculation(most=8)
    asked = []
    for right in (0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8):
        asked.append(speculation.now())
        speculation.count(asked[-1], min(right, asked[-1]))
    assert asked == [8, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    speculation.count(1, 1)
    for right in (2, 1, 8):
        asked.append(speculation.now())
        speculation.count(asked[-1], min(right, asked[-1]))
    assert asked[-3:] == [2, 4, 2]
    with pytest.raises(UserError, match="negative"):
        Speculation(most=-1)


def test_contexts_of_presets_guess_too():
    context = Context(gf.build("goldfinch-L3-D64", vocab_size=257).model, ByteTokenizer())
    assert len("".join(context.read([1, 2, 3, 1, 2]).generate(max_tokens=5, temperature=0))) > 0
