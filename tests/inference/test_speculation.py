"""Draft tokens change how long generation takes, never what is generated."""

import pytest
import torch
from plans import PLANS, small_context, small_sequence

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.speculation import DraftPolicy, PromptLookup

TEXT = "the sea, the whale and the sea, the whale and the ship; the sea, "


@pytest.fixture
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids[None])[0][0].float()


@pytest.mark.parametrize("plan", PLANS)
def test_a_draft_step_gives_the_logits_of_the_whole_forward_whatever_was_accepted_before(plan, model_of, text):
    model = model_of(plan, torch.float32)
    ids, sequence = text(60), small_sequence(model)
    sequence.append(ids[:11])
    for drafted, wanted in ((3, 1), (4, 2), (1, 1), (5, 5), (6, 1), (6, 1), (6, 1), (4, 3)):
        before, tried = len(sequence), min(drafted, sequence.block_size - len(sequence) % sequence.block_size)
        kept = min(tried, wanted)
        logits = sequence.verify_draft(ids[before : before + tried])
        expected = logits_of(model, ids[: before + tried])[before:]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
        sequence.accept(kept)
        assert len(sequence) == before + kept
    # The sequence continues as if nothing had been drafted.
    fork, end = sequence.fork(), len(sequence)
    torch.testing.assert_close(sequence.compute_logits(), logits_of(model, ids[:end])[-1], atol=2e-4, rtol=0)
    fork.append(ids[end:])
    torch.testing.assert_close(fork.compute_logits(), logits_of(model, ids)[-1], atol=2e-4, rtol=0)
    sequence.truncate(end - 2)
    torch.testing.assert_close(sequence.compute_logits(), logits_of(model, ids[: end - 2])[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 3, "temperature": 0.1}])
@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize("budget", [0, "1GiB"])
def test_the_text_is_the_one_generated_without_drafts(lm, sampling, penalty, budget):
    generations = []
    for max_draft_tokens in (0, 1, 8):
        context = lm.read(TEXT, budget=budget)
        settings = {"max_tokens": 60, "frequency_penalty": penalty, "max_draft_tokens": max_draft_tokens} | sampling
        generations.append(context.generate(**settings))
        assert len(context) == len(lm.encode(TEXT)) + 60
    assert len({generation.text for generation in generations}) == 1
    counts = [generation.num_draft_tokens for generation in generations]
    assert counts[0] == 0 < counts[1]


def test_accepted_draft_tokens_save_forward_passes_and_are_counted(lm):
    generation = lm.read(TEXT).generate(max_tokens=100, temperature=0)
    # A small model that always takes the most likely token soon repeats itself.
    assert generation.num_accepted > 20
    # The last token is not run through the upper layers: nothing is sampled after it.
    assert generation.num_forward_passes + generation.num_accepted in (99, 100)
    assert f"{generation.num_accepted} of {generation.num_draft_tokens} draft tokens" in generation.summary()


def test_a_reader_who_stops_early_finds_the_context_where_the_text_ended(lm):
    whole = lm.read(TEXT)
    whole.generate(max_tokens=60, temperature=0)
    for count in range(1, 40):
        context = lm.read(TEXT)
        pieces = context.stream(max_tokens=60, temperature=0)
        text = "".join(next(pieces) for _ in range(count))
        pieces.close()
        ids = context.ids()
        assert ids == whole.ids(0, len(ids))
        assert lm.tokenizer.decode(ids[len(TEXT) :]).removesuffix("\ufffd") == text.removesuffix("\ufffd")
        torch.testing.assert_close(context.logits, lm.read(ids).logits, atol=1e-4, rtol=0)


def test_the_quantization_of_generated_tokens_is_measured_too(lm):
    context = lm.read(TEXT, latents="int8")
    assert context.generate(max_tokens=20, temperature=0).num_draft_tokens == 0
    assert context.measure_quantization().num_tokens == len(context)


@pytest.mark.parametrize(
    ("ids", "draft"),
    [([1, 2, 3, 4, 1, 2], [3, 4, 1]), ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2]), ([1, 1, 1], [1]),
     ([5, 1, 2, 7, 9, 1, 2, 8, 5, 1, 2], [7, 9, 1]), ([1, 2, 3], []), ([1], []), ([], [])],
)  # fmt: skip
def test_a_draft_is_what_followed_the_longest_and_latest_match(ids, draft):
    assert PromptLookup(ids).find(3) == draft


def test_the_lookup_grows_with_the_text():
    lookup = PromptLookup([1, 2, 3])
    lookup.add([1])
    assert lookup.find(9) == []
    lookup.add([2])
    assert lookup.find(9) == [3, 1, 2]
    assert lookup.find(0) == []


def test_fewer_tokens_are_drafted_and_more_rarely_while_drafts_are_rejected():
    policy = DraftPolicy(8)
    asked = []
    for accepted in (0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8):
        asked.append(policy.num_next())
        policy.record(asked[-1], min(accepted, asked[-1]))
    assert asked == [8, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    policy.record(1, 1)
    for accepted in (2, 1, 8):
        asked.append(policy.num_next())
        policy.record(asked[-1], min(accepted, asked[-1]))
    assert asked[-3:] == [2, 4, 2]
    with pytest.raises(UserError, match="max_draft_tokens must be a whole number of at least 0, not -1"):
        DraftPolicy(-1)


def test_contexts_of_presets_draft_too():
    context = small_context(gf.build("goldfinch-L3-D64", vocab_size=257).model, ByteTokenizer())
    assert len(context.read([1, 2, 3, 1, 2]).generate(max_tokens=5, temperature=0).token_ids) == 5
