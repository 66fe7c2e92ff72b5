"""How much may come in, how long it may take, and which sites' pages may ask."""

import json
import socket
import time

import httpx
import pytest

from goldfinch.serving import http_server

FOREVER = {"prompt": "x", "max_tokens": 10_000_000, "logit_bias": {"256": -1000}}


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def head(path="/tokenize", **headers):
    headers = {"Host": "x", "Content-Type": "application/json"} | headers
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


def answer_on(connection):
    """Status and body of what comes until the server closes the connection."""
    content = b""
    while part := connection.recv(1 << 16):
        content += part
    first, _, rest = content.partition(b"\r\n")
    return int(first.split()[1]), rest.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(start, is_chunked):
    url = start(max_body_bytes=1000)
    body = json.dumps({"text": "x" * 2000}).encode()
    answer = httpx.post(
        f"{url}/tokenize",
        content=iter([body[:500], body[500:]]) if is_chunked else body,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["error"]["message"]
    assert httpx.post(f"{url}/tokenize", json={"text": "x" * 900}).json()["count"] == 900
    too_large = {"files": ("book.txt", b"x" * 2000)}
    assert httpx.post(f"{url}/v1/contexts/upload", files=too_large).status_code == 413


def test_a_body_without_end_is_cut_off(start):
    with connect(start(max_body_bytes=1000)) as connection:
        connection.sendall(head(**{"Transfer-Encoding": "chunked"}))
        for _ in range(11):
            connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        status, body = answer_on(connection)
    assert status == 413
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_body_that_does_not_come_is_not_waited_for(start):
    with connect(start(seconds_to_send_body=0.2)) as connection:
        connection.sendall(head(**{"Content-Length": 100}) + b'{"te')
        status, body = answer_on(connection)
    assert status == 408
    assert "0.2 s" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("sent", [b"", b"POST /tokenize HTT", head()[:-2]])
def test_a_connection_without_a_request_is_closed(monkeypatch, start, sent):
    monkeypatch.setattr(http_server, "SECONDS_WITHOUT_REQUEST", 0.1)
    with connect(start()) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_connection_that_is_used_stays(monkeypatch, start):
    monkeypatch.setattr(http_server, "SECONDS_WITHOUT_REQUEST", 0.2)
    url = start()
    body = FOREVER | {"stream": True}
    with httpx.Client(base_url=url) as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines, begun = answer.iter_lines(), time.monotonic()
        while time.monotonic() - begun < 1:
            assert next(lines) is not None


def running(url):
    return httpx.get(f"{url}/health").json()["running"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_request_that_takes_too_long_ends_with_an_error(start, chat):
    url = start(timeout=0.5)
    path, body = "/v1/completions", FOREVER
    if chat:
        path = "/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "x"}]} | {k: v for k, v in FOREVER.items() if k != "prompt"}
    answer = httpx.post(url + path, json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    stream = httpx.post(url + path, json=body | {"stream": True}, timeout=60)
    assert stream.status_code == 200
    *chunks, last = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
    assert json.loads(last)["error"]["code"] == "timeout"
    assert all("choices" in json.loads(chunk) for chunk in chunks)
    while running(url):  # a test that never ends is one that fails
        time.sleep(0.05)


def test_a_request_in_time_is_not_touched(start):
    answer = httpx.post(f"{start(timeout=60)}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] <= 3


def test_pages_of_other_sites_may_not_use_the_server(start):
    url = start()
    port = url.rpartition(":")[2]
    for origin, status in (
        (f"http://127.0.0.1:{port}", 200),
        ("https://elsewhere.example", 403),
        ("null", 403),
        (f"http://127.0.0.1:{port}.elsewhere.example", 403),
        (f"http://127.0.0.1:{port}@elsewhere.example", 403),
        ("http://127.0.0.1:1", 403),
        ("http://[", 403),
    ):
        answer = httpx.post(f"{url}/tokenize", json={"text": "a"}, headers={"Origin": origin})
        assert answer.status_code == status
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_pages_of_allowed_sites_may(start):
    url = start(cors_origins=("https://page.example",))
    headers = {"Origin": "https://page.example"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = httpx.options(f"{url}/v1/completions", headers=headers | ask)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    answer = httpx.post(f"{url}/tokenize", json={"text": "a"}, headers=headers)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")
    other = httpx.post(f"{url}/tokenize", json={"text": "a"}, headers={"Origin": "https://elsewhere.example"})
    assert other.status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("goldfinch.localhost", 200),
        ("elsewhere.example:8080", 403),
        ("127.0.0.1.elsewhere.example", 403),
        ("localhost@elsewhere.example", 403),
        ("192.168.1.2", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_another_name_that_leads_to_this_machine_is_refused(start, host, status):
    url = start(only_local_names=True)
    origin = {"Origin": f"http://{host}"}
    for headers in ({}, origin):
        assert httpx.get(f"{url}/v1/models", headers={"Host": host} | headers).status_code == status


def test_answers_are_taken_for_what_they_are_and_not_kept_by_browsers(start):
    url = start()
    for path in ("/health", "/v1/models", "/nosuch"):
        headers = httpx.get(url + path).headers
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert "Server" not in headers
