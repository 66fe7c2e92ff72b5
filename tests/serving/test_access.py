"""API keys: who is let in, whose things are whose, and how much a key allows."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from goldfinch.cli.main import run
from goldfinch.errors import UserError
from goldfinch.serving.access import Allowance, ApiKey, read_api_keys
from goldfinch.serving.context_store import ContextStore, NoRoomError

ALICE, BOB = "alices-secret-0123456789", "bobs-secret-0123456789"
KEYS = f"""
keys:
  - name: alice
    key: {ALICE}
    metrics: true
  - name: bob
    key: {BOB}
    requests_per_minute: 1000
    tokens_per_minute: 40
    max_context_bytes: 20KiB
"""
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse. "


@pytest.fixture
def keys_file(tmp_path):
    (tmp_path / "keys.yaml").write_text(KEYS)
    return tmp_path / "keys.yaml"


@pytest.fixture
def of(keys_file, client_of):
    """of(key, **headers) -> a client; all of one server."""
    make = client_of(keys=read_api_keys(keys_file))
    return lambda key=None: make({} if key is None else {"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer wrong-secret-0123456789",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE}x",
        f"Basic {ALICE}",
        ALICE,
        f"Bearer {ALICE}, Bearer {ALICE}",
        "Bearer \xff\xfe",
    ],
)
def test_without_a_known_key_nothing_is_answered(of, header):
    client = of()
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/contexts"),
        ("GET", "/openapi.json"),
        ("GET", "/nosuch"),
        ("POST", "/health"),
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert ALICE not in error["message"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_two_keys_at_once_are_none(of):
    headers = [("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {BOB}")]
    assert of().get("/v1/models", headers=headers).status_code == 401


def test_whether_the_server_is_there_and_its_page_need_no_key(of):
    client = of()
    assert client.get("/health").json()["status"] == "ok"
    for path in ("/", "/page/main.js"):
        assert client.get(path).status_code == client.head(path).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
def test_a_key_lets_in(of, scheme):
    assert of().get("/v1/models", headers={"Authorization": f"{scheme} {ALICE}"}).status_code == 200
    assert "goldfinch_" in of(ALICE).get("/metrics").text
    assert of(BOB).get("/metrics").status_code == 403


def test_contexts_and_cached_prompts_belong_to_their_key(of):
    alice, bob = of(ALICE), of(BOB)
    context = alice.post("/v1/contexts", json={"text": TEXT}).json()
    path = f"/v1/contexts/{context['id']}"
    missing = bob.get("/v1/contexts/ctx-nosuch")
    for method, end, body in (
        ("GET", "", None),
        ("GET", "/text", None),
        ("GET", "/file", None),
        ("GET", "/search?query=Call", None),
        ("PATCH", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/fork", {}),
        ("POST", "/append", {"text": "x"}),
        ("POST", "/truncate", {"length": 3}),
    ):
        answer = bob.request(method, path + end, json=body)
        assert answer.status_code == 404
        # It reads as for one that never was.
        assert answer.json()["error"]["message"] == missing.json()["error"]["message"].replace(
            "ctx-nosuch", context["id"]
        )
    for body in ({"parent": context["id"]}, {"context": context["id"], "prompt": "x"}):
        route = "/v1/contexts" if "parent" in body else "/v1/completions"
        assert bob.post(route, json=body).status_code == 404
    assert bob.get("/v1/contexts").json()["data"] == []
    assert [each["id"] for each in alice.get("/v1/contexts").json()["data"]] == [context["id"]]
    assert alice.get(f"{path}/text").json()["text"] == TEXT
    ask = {"prompt": TEXT[:30], "max_tokens": 1}
    assert alice.post("/v1/completions", json=ask).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 30
    assert bob.post("/v1/completions", json=ask).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_too_many_requests_wait(keys_file, client_of):
    keys_file.write_text(KEYS.replace("requests_per_minute: 1000", "requests_per_minute: 2"))
    make = client_of(keys=read_api_keys(keys_file))
    bob, alice = (make({"Authorization": f"Bearer {key}"}) for key in (BOB, ALICE))
    answers = [bob.get("/v1/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests a minute" in answers[2].json()["error"]["message"]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
    assert alice.get("/v1/models").status_code == 200


def test_tokens_that_were_read_and_generated_are_counted(of):
    bob = of(BOB)
    ask = {"prompt": TEXT[:60], "max_tokens": 10, "ignore_eos": True}
    assert bob.post("/v1/completions", json=ask).status_code == 200
    refused = bob.post("/v1/completions", json=ask)
    assert refused.status_code == 429
    assert "40 tokens a minute" in refused.json()["error"]["message"]
    assert 30 <= int(refused.headers["Retry-After"]) <= 60  # 70 of 40 were used: a debt of 30
    assert bob.post("/v1/contexts", json={"text": TEXT}).status_code == 429
    assert bob.get("/v1/contexts").status_code == 200  # it costs no tokens
    assert of(ALICE).post("/v1/completions", json=ask).status_code == 200


def test_an_answer_that_is_cut_off_is_counted(of, engine):
    bob = of(BOB)
    body = {"prompt": "x", "max_tokens": 100_000, "logit_bias": {"256": -1000}, "stream": True}
    with bob.stream("POST", "/v1/completions", json=body) as answer:
        pieces = answer.iter_raw()
        while engine.statistics.tokens_by_owner["bob"] < 50:
            next(pieces)
    assert bob.post("/v1/completions", json={"prompt": "x"}).status_code == 429


def test_a_context_that_is_too_large_is_refused_before_it_is_read(of, engine):
    alice, bob = of(ALICE), of(BOB)
    answer = bob.post("/v1/contexts", json={"text": TEXT * 1000})
    assert answer.status_code == 413
    assert f"{20 << 10:,}" in answer.json()["error"]["message"]
    assert engine.statistics.tokens_by_owner["bob"] == 0
    assert alice.post("/v1/contexts", json={"text": TEXT * 20}).status_code == 201


def test_contexts_together_may_not_be_larger_than_a_key_allows(lm, tmp_path):
    context = lm.read(TEXT)
    context.save(tmp_path / "size.gfc")
    size = (tmp_path / "size.gfc").stat().st_size
    store = ContextStore(tmp_path / "contexts", 1 << 30, {"bob": size * 3 // 2})
    first = store.add("bob", context, None)
    with pytest.raises(NoRoomError, match="delete a context"):
        store.add("bob", context.fork(), None)
    with pytest.raises(NoRoomError, match="delete a context"):
        store.add_file("bob", tmp_path / "size.gfc", "mine")
    store.add("alice", context.fork(), None)
    store.delete("bob", first.id)
    store.add("bob", context.fork(), None)
    assert len(store.list("bob")) == 1


def test_what_is_spent_comes_back_evenly():
    now = 0.0
    allowance = Allowance(60, lambda: now)
    assert allowance.seconds_until(60) == 0
    allowance.spend(70)
    assert allowance.seconds_until(1) == 11
    now = 10.5
    assert allowance.seconds_until(1) == 1
    now = 11.0
    assert allowance.seconds_until(1) == 0
    now = 1e6
    assert allowance.seconds_until(60) == 0
    assert allowance.seconds_until(61) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "keys: a list"),
        ("- a", "keys: a list"),
        ("keys: []", "keys: a list"),
        ("keys: [secret-secret-secret]", "key 1: it must have a name and a key"),
        ("keys: [{name: a}]", "key 1: it must have a name and a key"),
        ("keys: [{secret-secret-secret: a, name: b, key: c}]", "key 1: it must have a name and a key"),
        ("keys: [{name: a, key: secret}]", "16 to 512"),
        ("keys: [{name: a, key: 1234567890123456}]", "16 to 512"),
        ("keys: [{name: a, key: secret-secret-sécret}]", "16 to 512"),
        ('keys: [{name: "", key: secret-secret-secret}]', "name"),
        ("keys: [{name: a, key: secret-secret-secret, tokens_per_minute: 0}]", "tokens_per_minute must be at least 1"),
        ("keys: [{name: a, key: secret-secret-secret, tokens_per_minute: many}]", "tokens_per_minute"),
        ("keys: [{name: a, key: secret-secret-secret, max_context_bytes: 5 GB or so}]", "max_context_bytes"),
        ("keys: [{name: a, key: secret-secret-secret}, {name: b, key: secret-secret-secret}]", "key 2: .* same key"),
        ("keys: [{name: a, key: secret-secret-secret}, {name: a, key: another-secret-text}]", "key 2: .* same name"),
        ("keys:\n - name: a\n   key: secret-secret-secret: x", "not valid YAML, in line 3"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_a_key(tmp_path, content, problem):
    (tmp_path / "keys.yaml").write_text(content)
    with pytest.raises(UserError, match=problem) as error:
        read_api_keys(tmp_path / "keys.yaml")
    assert "secret" not in str(error.value)
    assert "keys.yaml" in str(error.value)


def test_the_file_in_the_documentation_is_read(tmp_path):
    docs = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (content,) = re.findall(r"```yaml\n(.*?)```", docs, flags=re.DOTALL)
    (tmp_path / "keys.yaml").write_text(content)
    keys = read_api_keys(tmp_path / "keys.yaml")
    assert keys.find(b"a-text-of-16-characters-or-more") == ApiKey(
        name="alice", requests_per_minute=60, tokens_per_minute=100_000, max_context_bytes=5 << 30, metrics=True
    )
    assert keys.find(b"another-text-that-nobody-can-guess") == ApiKey(name="bob")
    assert keys.find(b"") is None
    assert keys.max_context_bytes() == {"alice": 5 << 30}


def test_the_command_takes_a_file_of_keys(lm, keys_file, tmp_path):
    lm.save(tmp_path / "model")
    command = [sys.executable, "-m", "goldfinch", "serve", tmp_path / "model", "--port", "0", "--api-keys", keys_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        url = lines[0].split(" at ")[1].split(",")[0]
        assert "Authorization: Bearer KEY" in lines[2]
        assert not any(key in line for line in lines for key in (ALICE, BOB))
        with openai.OpenAI(base_url=f"{url}/v1", api_key=ALICE) as client:
            assert client.completions.create(model="model", prompt="Call me", max_tokens=4).usage.completion_tokens <= 4
            with pytest.raises(openai.AuthenticationError, match="not known"):
                client.with_options(api_key="wrong-secret-0123456789").models.list()
        process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--api-keys", "nosuch.yaml"], "nosuch.yaml"),
        (["--max-body", "much"], "--max-body"),
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "nan"], "--timeout"),
    ],
)
def test_wrong_limits_are_refused_before_the_model_is_loaded(lm, tmp_path, capsys, arguments, problem):
    lm.save(tmp_path / "model")
    assert run(["serve", str(tmp_path / "model"), "--port", "0", *arguments]) == 2
    assert problem in capsys.readouterr().err
