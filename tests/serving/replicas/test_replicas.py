"""Two replicas on this machine, as `goldfinch serve --replicas 2` starts them, and one of them killed."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel

pytest.importorskip("ray")

ALICE, BOB = "alices-secret-0123456789", "bobs-secret-0123456789"
KEYS = f"""
keys:
  - {{name: alice, key: {ALICE}, metrics: true}}
  - {{name: bob, key: {BOB}, tokens_per_minute: 50}}
"""
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse. "


@pytest.fixture(scope="module")
def lm(small_config, small_model):
    return LanguageModel(small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32), ByteTokenizer())


@pytest.fixture(scope="module")
def server(lm, tmp_path_factory):
    """The process of a server with two replicas, and its URL."""
    folder = tmp_path_factory.mktemp("replicas")
    lm.save(folder / "model")
    (folder / "keys.yaml").write_text(KEYS)
    command = [sys.executable, "-m", "goldfinch", "serve", "model", "--replicas", "2", "--port", "0"]
    command += ["--contexts", "contexts", "--api-keys", "keys.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        yield process, re.search(r"http://\S+:\d+", process.stdout.readline())[0]
        process.terminate()


@pytest.fixture
def client(server):
    """client(key) -> a client of the server."""
    clients = {
        key: httpx.Client(base_url=server[1], headers={"Authorization": f"Bearer {key}"}, timeout=120)
        for key in (ALICE, BOB)
    }
    yield clients.get
    for each in clients.values():
        each.close()


@pytest.fixture
def alice(client):
    return client(ALICE)


def complete(client, prompt, max_tokens=8, **fields):
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return client.post("/v1/completions", json=body | fields)


def metric(client, name, **labels):
    """Replica -> value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        sample.labels["replica"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_answers_are_those_of_the_model_whichever_replica_gives_them(alice, lm):
    for prompt in [TEXT, *map(str, range(8))]:
        answer = complete(alice, prompt).json()["choices"][0]["text"]
        assert answer == lm.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True).text
    assert len(metric(alice, "goldfinch_generated_tokens_total")) == 2


def test_a_conversation_stays_where_it_is_known(alice):
    text = TEXT * 12
    for turn in range(4):
        details = complete(alice, text).json()["usage"]["prompt_tokens_details"]
        if turn:
            assert details["computed_tokens"] < 2 * len(TEXT)
        text += TEXT


def test_a_context_is_everywhere_and_its_owners_alone(alice, client):
    context = alice.post("/v1/contexts", json={"text": TEXT, "name": "loomings"}).json()
    for length in range(20, 28):  # each fork has another id, and so any replica
        fork = alice.post(f"/v1/contexts/{context['id']}/fork", json={"length": length}).json()
        assert fork["num_tokens"] == length
        answer = complete(alice, " And then", context=fork["id"])
        assert answer.json()["usage"]["prompt_tokens"] == length + 9
    assert client(BOB).get(f"/v1/contexts/{context['id']}").status_code == 404
    names = [each["name"] for each in alice.get("/v1/contexts").json()["data"]]
    assert "loomings" in names


def test_limits_count_what_all_replicas_do(server, client):
    bob = client(BOB)
    statuses = [complete(bob, f"{turn} times", 8).status_code for turn in range(12)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert sum(status == 200 for status in statuses) <= 5  # of 8 + 7 tokens, and 50 a minute
    assert httpx.post(f"{server[1]}/v1/completions", json={"prompt": "x"}).status_code == 401


def test_work_ends_when_its_client_goes_away(alice):
    with alice.stream("POST", "/v1/completions", json=forever("a client that leaves")) as answer:
        next(answer.iter_lines())
    wait_until(lambda: alice.get("/health").json()["running"] == 0)

    def is_idle():
        complete(alice, "a client that leaves", 1)  # with which its replica says what it does
        return max(metric(alice, "goldfinch_requests_running").values()) <= 1

    wait_until(is_idle)


def forever(prompt):
    return {"prompt": prompt, "max_tokens": 10_000_000, "logit_bias": {"256": -1000}, "stream": True}


def replica_of(alice, prompt):
    """The process id of the replica that answers a prompt."""
    before = metric(alice, "goldfinch_generated_tokens_total")
    complete(alice, prompt, 1)
    after = metric(alice, "goldfinch_generated_tokens_total")
    [name] = [name for name, count in after.items() if count != before.get(name, 0)]
    return int(name.rpartition("-")[2])


def test_a_killed_replica_loses_no_context_and_another_answers_its_requests(alice, lm):
    context = alice.post("/v1/contexts", json={"text": TEXT, "name": "kept"}).json()
    expected = lm.generate("x", max_tokens=300, temperature=0, ignore_eos=True).text
    killed = replica_of(alice, "x")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(complete, alice, prompt, 300) for prompt in ["x", *map(str, range(7))]]
        with alice.stream("POST", "/v1/completions", json=forever("x")) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            os.kill(killed, signal.SIGKILL)
            *_, last = lines  # it ends
        assert "the replica that worked on this has died: try again" in last
        assert [answer.result().status_code for answer in answers] == [200] * 8
        assert answers[0].result().json()["choices"][0]["text"] == expected
    assert replica_of(alice, "x") != killed
    assert complete(alice, " And then", context=context["id"]).status_code == 200
    wait_until(lambda: alice.get("/health").json()["replicas"] == 2)


def test_what_is_being_answered_is_finished_at_the_end(server, alice):
    process, url = server
    body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
    children = psutil.Process(process.pid).children(recursive=True)
    with alice.stream("POST", "/v1/completions", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        process.terminate()
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert complete(alice, "y").status_code == 503
        *_, last = lines
    assert last == "data: [DONE]"
    assert process.wait(60) == 0
    assert psutil.wait_procs(children, 30)[1] == []
