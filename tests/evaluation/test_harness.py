"""What lm-eval asks of a model, by its own interface, against direct computation."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from goldfinch.errors import UserError
from goldfinch.evaluation.harness import GoldFinchLM
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.sampler import Sampler


def instances(kind, arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


CHOICES = [
    ("Question: Who is Ahab?\nAnswer:", " A captain"),
    ("Question: Who is Ahab?\nAnswer:", " A whale"),
    ("Question: Who is Ahab?\nAnswer:", " X"),
    ("Question: Who is Ishmael?\nAnswer: ", "A sailor"),
    ("", "Call me"),
    ("Call me", " Ishmael"),
]


@pytest.mark.parametrize("batch_size", ["auto", 1, 2])
def test_log_likelihoods_are_those_of_the_whole_forward(batch_size, lm, direct):
    harness = GoldFinchLM(lm, batch_size=batch_size)
    results = harness.loglikelihood(instances("loglikelihood", CHOICES), disable_tqdm=True)
    for (context, continuation), (logprob, is_greedy) in zip(CHOICES, results, strict=True):
        ids = list(context.rstrip().encode()) or [lm.tokenizer.end_of_text]
        moved = context[len(context.rstrip()) :] + continuation  # lm-eval moves spaces
        expected, expected_greedy = direct(lm, ids, moved.encode())
        assert logprob == pytest.approx(expected, abs=1e-4 * len(moved))
        assert is_greedy == expected_greedy
    assert 0 < harness.counts.computed < harness.counts.asked


TEXTS = ["Call me Ishmael. " * 4, "Some years ago", ""]


def test_rolling_log_likelihoods_read_all_of_a_text_in_one_context(lm, direct):
    results = GoldFinchLM(lm).loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in TEXTS]), True)
    for text, logprob in zip(TEXTS, results, strict=True):
        expected = direct(lm, [lm.tokenizer.end_of_text], text.encode())[0] if text else 0
        assert logprob == pytest.approx(expected, abs=1e-4 * len(text))


def test_rolling_log_likelihoods_in_windows_are_those_of_models_of_limited_context(lm, direct):
    harness = GoldFinchLM(lm, max_length=10)
    (logprob,) = harness.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXTS[0],)]), True)
    ids = TEXTS[0].encode()
    expected = direct(lm, [lm.tokenizer.end_of_text], ids[:10])[0]
    for start in range(10, len(ids), 10):
        stop = min(start + 10, len(ids))
        expected += direct(lm, ids[stop - 11 : start], ids[start:stop])[0]
    assert logprob == pytest.approx(expected, abs=1e-4 * len(ids))


def test_contexts_are_cut_to_the_maximum_length_on_the_left(lm, direct):
    harness = GoldFinchLM(lm, max_length=12)
    ((logprob, _),) = harness.loglikelihood(instances("loglikelihood", [("Some years ago", " never mind")]), True)
    whole = b"Some years ago never mind"[-13:]
    assert logprob == pytest.approx(direct(lm, whole[:2], whole[2:])[0], abs=1e-3)


PROMPTS = ["Call me", "Call me Ishmael. Some", "The whale", "Call me Ishmael. Some years"]


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_generations_are_those_of_each_prompt_alone(batch_size, lm):
    arguments = [(prompt, {"until": ["\x05"], "max_gen_toks": 3 + 5 * n}) for n, prompt in enumerate(PROMPTS)]
    texts = GoldFinchLM(lm, batch_size=batch_size).generate_until(instances("generate_until", arguments), True)
    for prompt, (_, options), text in zip(PROMPTS, arguments, texts, strict=True):
        alone = lm.generate(prompt, max_tokens=options["max_gen_toks"], temperature=0, stop="\x05")
        assert text == alone.text
    assert any(texts)


def test_sampled_generations_can_be_repeated(lm):
    arguments = [("Call me", {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "max_gen_toks": 8})] * 2
    first = GoldFinchLM(lm).generate_until(instances("generate_until", arguments), True)
    assert first == GoldFinchLM(lm, batch_size=1).generate_until(instances("generate_until", arguments), True)
    assert first[0] != first[1]


def test_a_generation_that_fails_ends_the_run(lm, monkeypatch):
    sample, num_left = Sampler.sample, 5

    def fail_later(self, *arguments):
        nonlocal num_left
        num_left -= 1
        if num_left <= 0:
            raise UserError("no token is left")
        return sample(self, *arguments)

    monkeypatch.setattr(Sampler, "sample", fail_later)
    arguments = [(prompt, {"until": [], "max_gen_toks": 20}) for prompt in PROMPTS]
    with pytest.raises(UserError, match="no token is left"):
        GoldFinchLM(lm).generate_until(instances("generate_until", arguments), True)


def test_conversations_are_written_by_the_chat_template_of_the_model(lm):
    harness = GoldFinchLM(lm)
    question = [{"role": "user", "content": "Who is Ahab?"}]
    assert harness.apply_chat_template(question) == "User: Who is Ahab?\n\nAssistant:"
    begun = [*question, {"role": "assistant", "content": "A cap"}]
    assert harness.apply_chat_template(begun, add_generation_prompt=False).endswith("Assistant: A cap")
    assert harness.chat_template(True) == lm.chat_template.source
    assert harness.chat_template(False) is None


def test_the_model_is_registered_and_loads_a_folder(lm, tmp_path):
    lm.save(tmp_path / "model")
    arguments = f"pretrained={tmp_path / 'model'},dtype=float32,max_length=64"
    harness = get_model("goldfinch").create_from_arg_string(arguments, {"batch_size": 2, "device": "cpu"})
    request = instances("loglikelihood", [("Call me", " Ishmael")])
    assert harness.loglikelihood(request, True) == GoldFinchLM(lm).loglikelihood(request, True)
    assert harness.get_model_info()["model_dtype"] == "float32"


def test_what_cannot_be_evaluated_is_refused(lm):
    with pytest.raises(UserError, match="tokenizer"):
        GoldFinchLM(LanguageModel(lm.model, None))
    with pytest.raises(UserError, match="batch_size"):
        GoldFinchLM(lm, batch_size=0)
    with pytest.raises(UserError, match="max_length"):
        GoldFinchLM(lm, max_length=0)
    with pytest.raises(UserError, match="more than max_length"):
        GoldFinchLM(lm, max_length=3).loglikelihood(instances("loglikelihood", [("a", "12345")]), True)
    with pytest.raises(UserError, match="no token"):
        GoldFinchLM(lm).loglikelihood(instances("loglikelihood", [("a", "")]), True)


def test_one_process_gathers_only_its_own(lm):
    harness = GoldFinchLM(lm)
    assert harness.gather_object("x") == ["x"]
    assert harness.all_gather(torch.tensor(3)) == torch.tensor(3)
