"""The engine: many tasks at once, what they share, and what happens when memory is short."""

import queue

import numpy as np
import pytest

from goldfinch.errors import UserError
from goldfinch.inference.generation import GenerationState
from goldfinch.inference.sampling import Sampling
from goldfinch.serving import engine as engine_module
from goldfinch.serving.engine import Engine, QueueFullError, StoppingError, TooLargeError
from goldfinch.serving.tasks import Answer, GenerationTask, ReadTask, RequestCancelledError, Text

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 4
GREEDY = Sampling(temperature=0, ignore_eos=True)


def ids_of(lm, text):
    return lm.encode(text).numpy()


def ask(engine, ids, sampling=GREEDY, max_tokens=6, **options):
    """Submit a task; its events."""
    events = queue.SimpleQueue()
    task = GenerationTask(options.pop("owner", ""), events.put, ids, sampling, max_tokens, **options)
    engine.submit(task)
    return task, events


def end(events):
    """The answer, or what went wrong."""
    while not isinstance(event := events.get(timeout=120), Answer | Exception):
        pass
    return event


@pytest.mark.parametrize("base", ["cold", "warm", "restored", "forked"])
def test_a_prompt_has_the_same_logits_wherever_its_beginning_comes_from(lm, engine, tmp_path, base):
    prompt = ids_of(lm, TEXT + "And so")
    expected = lm.read(prompt.tolist()).generate(max_tokens=6, temperature=0, ignore_eos=True, logprobs=3)
    options = {}
    if base == "warm":  # another continuation of the same text, which parts from it within the text
        end(ask(engine, ids_of(lm, TEXT[:100] + "x" + TEXT))[1])
        end(ask(engine, ids_of(lm, TEXT + "But"))[1])
    if base in ("restored", "forked"):
        context = lm.read(TEXT if base == "restored" else TEXT + "something else")
        context.truncate(len(TEXT))
        context.save(tmp_path / "text.gfc")
        options = {"base": tmp_path / "text.gfc"}
        prompt = prompt[len(TEXT) :]
    answer = end(ask(engine, prompt, num_logprobs=3, **options)[1])
    assert answer.generation.token_ids == expected.token_ids
    for ours, theirs in zip(answer.generation.logprobs, expected.logprobs, strict=True):
        assert [each[1] for each in ours.top] == pytest.approx([each[1] for each in theirs.top], abs=1e-4)
    assert (answer.prompt.cached > 0) == (base != "cold")


def test_several_answers_read_their_prompt_once(lm, engine):
    sampling = Sampling(seed=5, ignore_eos=True)
    _, events = ask(engine, ids_of(lm, TEXT), sampling, num_answers=3)
    answers = sorted((end(events) for _ in range(3)), key=lambda answer: answer.index)
    for index, answer in enumerate(answers):
        expected = lm.read(TEXT).generate(max_tokens=6, seed=5 + index, ignore_eos=True)
        assert answer.generation.token_ids == expected.token_ids
    assert engine.statistics.prompt_tokens["computed"] == len(TEXT)


def test_the_prompts_log_probabilities_are_those_of_scoring_it(lm, engine):
    _, events = ask(engine, ids_of(lm, TEXT), max_tokens=1, num_logprobs=2, with_prompt_logprobs=True)
    answer = end(events)
    expected = lm.read(TEXT[:1]).score(TEXT[1:])
    assert [each.logprob for each in answer.prompt_logprobs] == pytest.approx(expected.logprobs, abs=1e-4)
    assert [each.token_id for each in answer.prompt_logprobs] == list(expected.token_ids)


def test_prompts_of_one_owner_are_never_found_by_another(lm, engine):
    assert end(ask(engine, ids_of(lm, TEXT), owner="alice")[1]).prompt.cached == 0
    assert end(ask(engine, ids_of(lm, TEXT), owner="bob")[1]).prompt.cached == 0
    assert end(ask(engine, ids_of(lm, TEXT), owner="alice")[1]).prompt.cached == len(TEXT)
    assert engine.statistics.misses == {"nothing kept": 2}


def test_random_arrivals_and_cancellations_change_no_answer(lm, engine):
    generator = np.random.default_rng(0)
    waiting = []
    for number in range(24):
        prompt = f"{TEXT[: generator.integers(1, 200)]} {number}"
        sampling = Sampling(temperature=0.8, seed=number, ignore_eos=True)
        task, events = ask(engine, ids_of(lm, prompt), sampling, max_tokens=int(generator.integers(1, 12)))
        waiting.append((prompt, sampling, task, events))
        if generator.random() < 0.3:
            waiting[generator.integers(len(waiting))][2].cancel()
    for number, (prompt, sampling, task, events) in enumerate(waiting):
        answer = end(events)
        if task.is_cancelled and isinstance(answer, RequestCancelledError):
            continue
        expected = lm.read(prompt).generate(max_tokens=12, sampling=sampling).token_ids
        written = answer.generation.token_ids
        assert written == expected[: len(written)], number
        assert task.is_cancelled or answer.generation.finish_reason == "length"


def test_generations_that_outgrow_the_memory_are_put_aside_and_come_back(lm, monkeypatch):
    monkeypatch.setattr(engine_module, "STEPS_PER_CHECK", 4)
    engine = Engine(lm, max_bytes=1 << 29)
    prompts = [TEXT + str(number) for number in range(5)]
    waiting = [ask(engine, ids_of(lm, prompt), max_tokens=40)[1] for prompt in prompts]
    original = Engine.measure

    def only_two_fit(self):
        return 1 << 30 if len(self._batch) > 2 else original(self)

    monkeypatch.setattr(Engine, "measure", only_two_fit)
    monkeypatch.setattr(Engine, "_admit", admit_all)  # as if that had not been known before
    engine.start()
    for prompt, events in zip(prompts, waiting, strict=True):
        expected = lm.read(prompt).generate(max_tokens=40, temperature=0, ignore_eos=True)
        assert end(events).generation.token_ids == expected.token_ids
    engine.stop(60)
    assert engine.statistics.num_paused >= 3


def admit_all(self):
    while self._waiting:
        task = self._waiting.popleft()
        self._reading[task] = iter(task.run(self))


def test_memory_stays_within_its_limit_and_what_is_kept_makes_room(lm):
    limit = 2 << 20
    engine = Engine(lm, max_bytes=limit)
    engine.start()
    for number in range(12):
        assert isinstance(end(ask(engine, ids_of(lm, f"{number} {TEXT}"))[1]), Answer)
    end(ask(engine, ids_of(lm, "x"))[1])
    engine.stop(60)
    assert engine.statistics.num_reclaimed > 0
    assert engine.measure() < limit * 1.2


def test_a_text_that_can_never_fit_is_refused(lm):
    engine = Engine(lm, max_bytes=1 << 18)
    engine.start()
    error = end(ask(engine, ids_of(lm, "x" * 20_000))[1])
    assert isinstance(error, TooLargeError)
    assert "--memory" in str(error)
    engine.stop(60)


def test_a_full_queue_and_an_engine_that_ends_refuse(lm, monkeypatch):
    monkeypatch.setattr(engine_module, "MAX_WAITING", 2)
    engine = Engine(lm, max_bytes=1 << 26)
    waiting = [ask(engine, [1, 2])[1] for _ in range(2)]
    with pytest.raises(QueueFullError):
        ask(engine, [1, 2])
    engine.start()
    engine.stop(60)
    assert all(isinstance(end(events), Answer) for events in waiting)
    with pytest.raises(StoppingError):
        ask(engine, [1, 2])


def test_one_task_that_fails_leaves_the_others_alone(lm, engine):
    _, good = ask(engine, ids_of(lm, TEXT), max_tokens=30)
    events = queue.SimpleQueue()
    engine.submit(ReadTask("", events.put, None, None, [Text(np.array([1 << 40]))]))
    with pytest.raises(Exception, match="outside this model's vocabulary"):
        raise end(events)
    assert len(end(good).generation.token_ids) == 30


def test_shared_blocks_are_counted_once(lm, engine):
    text = (TEXT * 20)[:4200]  # a block and some more
    end(ask(engine, ids_of(lm, text))[1])
    alone = engine.measure()
    _, events = ask(engine, ids_of(lm, text), Sampling(seed=1, ignore_eos=True), num_answers=4)
    for _ in range(4):
        end(events)
    assert engine.measure() < 1.5 * alone


def test_a_task_whose_answers_all_fail_ends_once_and_the_engine_continues(lm, engine, monkeypatch):
    original = GenerationState.take

    def take(self, logits):
        if self.num_left == 3:
            raise UserError("no token is left")
        return original(self, logits)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationState, "take", take)
        _, events = ask(engine, ids_of(lm, TEXT), Sampling(seed=1, ignore_eos=True), num_answers=3)
        assert str(end(events)) == "no token is left"
    assert len(end(ask(engine, ids_of(lm, TEXT))[1]).generation.token_ids) == 6
    assert events.empty()


def test_nobody_waits_for_an_engine_that_has_failed(lm, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Engine, "_step", broken)
    engine = Engine(lm, max_bytes=1 << 28)
    waiting = [ask(engine, ids_of(lm, TEXT + each))[1] for each in "ab"]
    engine.start()
    assert [str(end(events)) for events in waiting] == ["a bug", "a bug"]
    with pytest.raises(StoppingError):
        ask(engine, [1, 2])
