"""Contexts that generate together: the same text as one by one, whoever joins and leaves."""

import pytest
import torch
from plans import PLANS

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.batch import Batch
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import read_lower
from goldfinch.inference.sampling import Sampling

PROMPTS = ["Call me Ishmael.", "W", "The whale, the whale, the whale, the wh", "x" * 70, "It was the best of times"]
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "penalties": {"seed": 5, "presence_penalty": 0.5, "frequency_penalty": 0.2, "repetition_penalty": 1.2, "top_k": 20},
    "stop string": {"seed": 1, "stop": (" ", "e")},
}


@pytest.fixture(scope="module", params=PLANS)
def lm(request, small_config, small_model):
    plan, settings = PLANS[request.param]
    return LanguageModel(small_model(small_config(*plan, vocab_size=257, **settings), torch.float32), ByteTokenizer())


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_batch_generates_the_same_text_as_its_prompts_one_by_one(lm, settings):
    options = SETTINGS[settings]
    together = lm.generate(PROMPTS, max_tokens=24, logprobs=1, **options)
    for row, (prompt, generation) in enumerate(zip(PROMPTS, together, strict=True)):
        seed = {"seed": options["seed"] + row} if "seed" in options else {}
        alone = lm.generate(prompt, max_tokens=24, logprobs=1, **options | seed)
        assert (generation.text, generation.token_ids) == (alone.text, alone.token_ids)
        assert generation.finish_reason == alone.finish_reason
        for ours, theirs in zip(generation.logprobs, alone.logprobs, strict=True):
            assert ours.token_id == theirs.token_id
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_contexts_join_and_leave_between_steps_and_can_be_used_afterwards(lm):
    sampling = Sampling(seed=0)
    expected = [lm.generate(prompt, max_tokens=12, seed=0).token_ids for prompt in PROMPTS[:3]]
    contexts = [lm.read(prompt) for prompt in PROMPTS[:3]]
    states = [context.generation_state(sampling, max_tokens=12) for context in contexts]
    batch = Batch()
    batch.add(states[0])
    batch.step()
    batch.add(states[1])
    for _ in range(3):
        batch.step()
    batch.add(states[2])
    batch.remove(states[1])
    assert len(batch) == 2
    while len(batch):
        batch.step()
    for row in (0, 2):
        assert states[row].result().token_ids == expected[row]
        assert contexts[row].ids()[len(PROMPTS[row]) :] == list(expected[row])
    left = states[1].result().token_ids
    assert 0 < len(left) < 12
    assert left == expected[1][: len(left)]
    # What left continues from where it was, as if it had been alone all the time.
    whole = lm.read(PROMPTS[1]).read(list(left))
    torch.testing.assert_close(contexts[1].logits, whole.logits, rtol=0, atol=1e-4)


def test_more_prompts_than_step_together_all_get_their_answers(lm):
    prompts = [f"{number}" for number in range(21)]
    together = lm.generate(prompts, max_tokens=3, temperature=0)
    assert [generation.token_ids for generation in together] == [
        lm.generate(prompt, max_tokens=3, temperature=0).token_ids for prompt in prompts
    ]


def test_one_pass_over_the_weights_serves_all(lm, monkeypatch):
    calls = []

    def counting(model, ids, states):
        calls.append(tuple(ids.shape))
        return read_lower(model, ids, states)

    monkeypatch.setattr("goldfinch.inference.batch.read_lower", counting)
    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", counting)
    generations = lm.generate(["abc", "de", "f"], max_tokens=5, temperature=0, ignore_eos=True)
    # At the end each context reads its last token by itself.
    assert calls == [(1, 3), (1, 2), (1, 1), *[(3, 1)] * 4, *[(1, 1)] * 3]
    assert [generation.num_forward_passes for generation in generations] == [4, 4, 4]


def test_an_interrupted_step_leaves_every_context_with_what_was_generated(lm, monkeypatch):
    contexts = [lm.read(prompt) for prompt in PROMPTS[:2]]
    states = [context.generation_state(Sampling(seed=0), max_tokens=9) for context in contexts]
    batch = Batch()
    for state in states:
        batch.add(state)
    batch.step()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("goldfinch.inference.batch.next_token_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch.step()
    assert len(batch) == 0
    for context, state, prompt in zip(contexts, states, PROMPTS, strict=False):
        assert context.ids() == [*prompt.encode(), *state.result().token_ids]
        torch.testing.assert_close(context.logits, lm.read(context.ids()).logits, rtol=0, atol=1e-4)
