"""What OpenAI's own client makes of the answers."""

import json

import openai
import pydantic
import pytest

MESSAGES = [{"role": "user", "content": "Who is Ahab?"}]
OPTIONS = {"model": "small", "temperature": 0}


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_response_whole_and_streamed(client):
    settings = {"input": "Who is Ahab?", "instructions": "Be short.", "max_output_tokens": 8, **OPTIONS}
    whole = client.responses.create(**settings)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 8
    *deltas, last = [
        event
        for event in client.responses.create(stream=True, **settings)
        if event.type in ("response.output_text.delta", "response.incomplete")
    ]
    assert "".join(delta.delta for delta in deltas) == whole.output_text == last.response.output_text
    assert last.response.usage.input_tokens_details.cached_tokens == whole.usage.input_tokens
    chat = client.chat.completions.create(
        messages=[{"role": "system", "content": "Be short."}, *MESSAGES], max_tokens=8, **OPTIONS
    )
    assert chat.choices[0].message.content == whole.output_text


def test_several_answers_each_with_its_seed(client, lm):
    answers = client.completions.create(prompt="Call me", n=3, seed=5, max_tokens=6, model="small")
    expected = [lm.generate("Call me", max_tokens=6, seed=5 + index).text for index in range(3)]
    assert [choice.text for choice in answers.choices] == expected
    stream = client.completions.create(prompt="Call me", n=3, seed=5, max_tokens=6, model="small", stream=True)
    texts = ["", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_log_probabilities_are_the_librarys(client, lm):
    answer = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=5, extra_body={"ignore_eos": True}, **OPTIONS
    )
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 5
    assert all(entry.logprob == pytest.approx(entry.top_logprobs[0].logprob) for entry in entries)  # greedy
    context = lm.context()
    context.read(lm.chat_template.render(MESSAGES))
    expected = context.generate(max_tokens=5, temperature=0, logprobs=2, ignore_eos=True)
    assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in expected.logprobs], abs=1e-4)
    stream = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, max_tokens=5, stream=True, extra_body={"ignore_eos": True}, **OPTIONS
    )
    streamed = [e.logprob for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == pytest.approx([entry.logprob for entry in entries], abs=1e-4)


def test_an_echoed_prompt_is_scored_as_the_library_scores_it(client, lm):
    ids = lm.encode("Call me Ishmael.").tolist()
    answer = client.completions.create(prompt=[ids, ids[:4]], echo=True, logprobs=1, max_tokens=0, model="small")
    first, second = answer.choices
    assert first.text == "Call me Ishmael."
    assert first.logprobs.token_logprobs[0] is None
    expected = lm.read(ids[:1]).score(ids[1:])
    assert first.logprobs.token_logprobs[1:] == pytest.approx(expected.logprobs, abs=1e-4)
    assert second.logprobs.token_logprobs[1:] == pytest.approx(expected.logprobs[:3], abs=1e-4)
    assert "".join(first.logprobs.tokens) == first.text
    assert first.logprobs.text_offset == list(range(len(ids)))


class Whale(pydantic.BaseModel):
    is_white: bool


def test_an_answer_that_must_be_json_is_read_by_the_clients_own_parser(client):
    parsed = client.chat.completions.parse(
        messages=MESSAGES, response_format=Whale, model="small", seed=1, max_tokens=60
    )
    assert isinstance(parsed.choices[0].message.parsed, Whale)
    response = client.responses.parse(input="Is it white?", text_format=Whale, model="small", max_output_tokens=60)
    assert isinstance(response.output_parsed, Whale)
    form = {"type": "regex", "regex": "(yes|no), sir"}
    answer = client.completions.create(prompt="x", model="small", extra_body={"response_format": form})
    assert answer.choices[0].text in ("yes, sir", "no, sir")
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.completions.create(prompt="x", model="small", extra_body={"response_format": {"type": "json_schema"}})


def test_models_and_the_tokenizer(client, ask):
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError, match="small"):
        client.models.retrieve("gpt-5")
    ids = ask("/tokenize", text="Wal, 鯨")["tokens"]
    assert ask("/detokenize", tokens=ids)["text"] == "Wal, 鯨"
    assert ask("/tokenize", text="") == {"tokens": [], "count": 0}
    assert "outside" in json.dumps(ask("/detokenize", tokens=[1 << 40]))
