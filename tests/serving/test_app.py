"""What the server answers, by plain HTTP and by OpenAI's own client."""

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import httpx
import openai
import pytest
import torch

from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.sampling import Sampling
from goldfinch.serving.engine import Engine
from goldfinch.serving.tasks import Answer, GenerationTask, RequestCancelledError


def test_a_completion_is_what_the_engine_writes(ask, lm):
    answer = ask("/v1/completions", prompt="Call me Ishmael.", max_tokens=8, temperature=0)
    expected = lm.read("Call me Ishmael.").generate(max_tokens=8, temperature=0)
    assert answer["choices"][0]["text"] == expected.text
    assert answer["usage"]["prompt_tokens"] == 16
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_stream_has_the_same_text_and_its_usage(ask):
    body = {"prompt": "Call me Ishmael.", "max_tokens": 8, "temperature": 0}
    whole = ask("/v1/completions", **body)
    *chunks, usage = ask("/v1/completions", **body, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert usage["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 16,
        "replayed_tokens": 0,
        "computed_tokens": 0,
    }


def test_many_at_once_get_what_each_gets_alone(ask, lm):
    prompts = [f"It was the year {year}, and the sea" for year in range(1840, 1852)]
    answers = {}

    def send(prompt):
        answers[prompt] = ask("/v1/completions", prompt=prompt, max_tokens=12, temperature=0.7, seed=3)

    threads = [threading.Thread(target=send, args=[prompt]) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        expected = lm.read(prompt).generate(max_tokens=12, temperature=0.7, seed=3)
        assert answers[prompt]["choices"][0]["text"] == expected.text


def test_a_turn_of_a_conversation_computes_its_new_tokens_only(ask):
    messages = [{"role": "user", "content": "Who is Ahab, and what does he want?"}]
    first = ask("/v1/chat/completions", messages=messages, max_tokens=6, temperature=0)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "Why?"}]
    second = ask("/v1/chat/completions", messages=messages, max_tokens=6, temperature=0)
    usage = second["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    assert usage["prompt_tokens_details"]["computed_tokens"] < 40


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": "x", "best_of": 3}, "best_of"), ({"prompt": "x", "top_p": 2}, "top_p"), ({}, "prompt")],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name_in_openais_form(ask, body, param):
    error = ask("/v1/completions", **body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/nosuch", b"{}", 404),
        ("/v1/completions", b'{"prompt": "x", ', 400),
        ("/v1/completions", b'{"prompt": "\\ud800"}', 400),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        ("/v1/completions", b'{"prompt": [1, 99999]}', 400),
        ("/v1/completions", b'{"prompt": ""}', 400),
    ],
)
def test_every_error_has_openais_form(url, path, content, status):
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    body = json.loads(error.value.read())["error"]
    assert (error.value.code, body["type"], body["param"]) == (status, "invalid_request_error", None)
    assert body["message"]


def test_a_request_that_is_cancelled_in_the_queue_is_never_read(lm):
    engine, events = Engine(lm, max_bytes=1 << 26), queue.SimpleQueue()
    cancelled = GenerationTask("", events.put, [1, 2, 3], Sampling(temperature=0), 4)
    other = GenerationTask("", events.put, [4, 5, 6], Sampling(temperature=0, ignore_eos=True), 4)
    engine.submit(cancelled)
    engine.submit(other)
    cancelled.cancel()
    assert engine.num_waiting == 2
    engine.start()
    assert isinstance(events.get(timeout=60), RequestCancelledError)
    engine.stop(timeout=60)
    while not isinstance(answer := events.get(timeout=60), Answer):
        pass
    assert len(answer.generation.token_ids) == 4
    assert engine.num_waiting == engine.num_running == 0
    assert cancelled.context is None


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_reads_every_answer(client):
    assert [model.id for model in client.models.list()] == ["small"]
    messages = [{"role": "user", "content": "Who is Ahab?"}]
    options = {"model": "small", "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(messages=messages, **options)
    stream = client.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, **options
    )
    *chunks, last = stream
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 8
    assert last.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens
    text = client.completions.create(prompt="Call me", **options).choices[0].text
    assert text == "".join(
        chunk.choices[0].text for chunk in client.completions.create(prompt="Call me", stream=True, **options)
    )
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.completions.create(prompt="Call me", top_p=2, **options)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_is_not_written_on(url, stream):
    address = url.removeprefix("http://").split(":")
    never_ends = {"max_tokens": 10_000_000, "logit_bias": {"256": -1000}}
    body = json.dumps({"prompt": "Call me", "stream": stream} | never_ends)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"

    def running():
        with urllib.request.urlopen(f"{url}/health") as answer:
            return json.load(answer)["running"]

    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        while not running():
            time.sleep(0.05)
    while running():  # a test that never ends is one that fails
        time.sleep(0.05)


def test_the_command_serves_and_ends_well_when_it_is_told_to(lm, tmp_path):
    lm.save(tmp_path / "model")
    command = [sys.executable, "-m", "goldfinch", "serve", tmp_path / "model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split(" at ")[1].split(",")[0]
        try:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3) as client:
                body = {"ignore_eos": True}
                answer = client.completions.create(model="model", prompt="Call me", max_tokens=4, extra_body=body)
            assert answer.usage.completion_tokens == 4
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_named(lm, tmp_path, capsys):
    lm.save(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(tmp_path / "model"), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_model_whose_weights_are_corrupt_is_the_servers_fault(served, small_config, small_model, tmp_path):
    model = small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32)
    model.head.weight.data[7] = torch.nan
    engine = Engine(LanguageModel(model, ByteTokenizer()), max_bytes=1 << 28)
    engine.start()
    with served(engine, tmp_path) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "Call me", "max_tokens": 4})
    engine.stop(10)
    assert answer.status_code == 500
    assert "weights are corrupt" in answer.json()["error"]["message"]
