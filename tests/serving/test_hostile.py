"""What no well-meaning client sends: everything gets an answer in OpenAI's form, and the server goes on."""

import http.client
import json
import socket

import httpx
import pytest

from goldfinch.serving.access import ApiKey, ApiKeys

KEY = "alices-secret-0123456789"
DEEP = 200_000
ROUTES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/contexts",
    "/v1/contexts/ctx-0/append",
    "/v1/contexts/ctx-0/fork",
    "/tokenize",
    "/detokenize",
)
BODIES = {
    "nothing": b"",
    "broken UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-8 of a surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "a zero byte": b'{"prompt": "a"}\x00',
    "cut": b'{"prompt": "a',
    "a list": b"[]",
    "a number": b"1e999",
    "deep lists": b"[" * DEEP,
    "deep and closed": b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"metadata":' * DEEP,
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "NaN in a penalty": b'{"prompt": "a", "presence_penalty": NaN}',
    "NaN in a bias": b'{"prompt": "a", "logit_bias": {"1": NaN}}',
    "infinite": b'{"prompt": "a", "frequency_penalty": -Infinity}',
    "too large a float": b'{"prompt": "a", "temperature": 1e999}',
    "too long an integer": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "a large seed": b'{"prompt": "a", "seed": 9223372036854775808}',
    "the largest seed, and others after it": b'{"prompt": "a", "seed": 9223372036854775807, "n": 2}',
    "large ids": b'{"prompt": [18446744073709551616]}',
    "negative ids": b'{"prompt": [-1]}',
    "ids that are none": b'{"prompt": [true, null, 1.5]}',
    "an id that is none in a bias": b'{"prompt": "a", "logit_bias": {"a": 1}}',
    "an unknown id in a bias": b'{"prompt": "a", "logit_bias": {"99999999999999999999": 1}}',
    "an empty stop": b'{"prompt": "a", "stop": ""}',
    "a surrogate as context": b'{"prompt": "a", "context": "\\ud800"}',
    "a path as context": b'{"prompt": "a", "context": "../../../../etc/passwd"}',
    "a zero byte as context": b'{"prompt": "a", "context": "ctx\\u0000"}',
    "a long context": b'{"prompt": "a", "context": "' + b"a" * 100_000 + b'"}',
}


@pytest.fixture(scope="module")
def post(shared_url):
    """post(path, content, **headers) -> the answer."""
    with httpx.Client(base_url=shared_url, timeout=60) as client:

        def send(path, content, **headers):
            return client.post(path, content=content, headers={"Content-Type": "application/json"} | headers)

        yield send


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "https://elsewhere.example/schema.json"}}},
        {"type": "json_schema", "json_schema": {"schema": {"minLength": 10**9, "type": "string"}}},
        {"type": "json_schema", "json_schema": {"schema": {"enum": ["a" * 100] * 10_000}}},
        {"type": "json_schema", "json_schema": {"schema": {"minimum": float("nan"), "type": "number"}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}},
        {"type": "regex", "regex": "(a+)+" * 50 + "b"},
        {"type": "regex", "regex": "(((a{1,1000}){1,1000}){1,1000})"},
        {"type": "regex", "regex": "(" * 10_000},
        {"type": "regex", "regex": "[\ud800]"},
        {"type": "grammar", "grammar": "start: start start"},
        {"type": "grammar", "grammar": "start: " + "(" * 10_000},
        {"type": "grammar", "grammar": '%import elsewhere.x\nstart: "a"'},
    ],
    ids=lambda each: str(each)[:60],
)
def test_grammars_that_cannot_be_are_refused(post, response_format):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "response_format": response_format}
    answer = post("/v1/chat/completions", json.dumps(body))
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or is_openais(answer)


def is_openais(answer):
    error = answer.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_none_are_refused(post, body):
    for path in ROUTES:
        answer = post(path, body)
        assert answer.status_code in (400, 404)
        assert is_openais(answer)
        assert len(answer.content) < 10_000
    assert post("/tokenize", b'{"text": "a"}').json() == {"tokens": [97], "count": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"logit_bias": {"97": 1e308, "98": -1e308}},
        {"presence_penalty": 1e308, "frequency_penalty": 1e308},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"top_p": 1e-300, "min_p": 1},
        {"top_k": 10**18},
        {"stop": ["a" * 10_000] * 100},
        {"seed": 2**63 - 1},
    ],
    ids=str,
)
def test_extreme_settings_are_settings(post, body):
    for stream in (False, True):
        content = {"prompt": "Call me", "max_tokens": 4, "logprobs": 2, "stream": stream} | body
        answer = post("/v1/completions", json.dumps(content))
        assert answer.status_code in (200, 400)
        assert '"server_error"' not in answer.text
        assert not stream or answer.status_code == 400 or answer.text.endswith("[DONE]\n\n")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x/" * 99]
)
def test_other_kinds_of_bodies_are_refused(post, kind):
    for path in (*ROUTES, "/v1/contexts/upload"):
        answer = post(path, b'{"prompt": "a", "text": "a"}', **{"Content-Type": kind})
        assert answer.status_code in (400, 404)
        assert is_openais(answer)


@pytest.mark.parametrize(
    "name",
    ["../../evil.txt", "/etc/passwd", "C:\\evil.txt", "..", "", "a\0b", "\ud800", "\u202etxt.exe", "a" * 10_000, "con"],
)
def test_names_of_files_never_become_paths(shared_url, shared_folder, name):
    boundary = "limit"
    shown = name.encode("utf-8", "surrogatepass").replace(b'"', b"")
    body = (
        b'--limit\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\nCall me\r\n--limit--\r\n'
        % shown
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = httpx.post(f"{shared_url}/v1/contexts/upload", content=body, headers=headers, timeout=60)
    assert answer.status_code in (201, 400)
    if answer.status_code == 201:
        (document,) = answer.json()["documents"]
        assert "/" not in document["name"]
        assert "\\" not in document["name"]
        file = httpx.get(f"{shared_url}/v1/contexts/{answer.json()['id']}/file")
        assert file.status_code == 200
        assert "\n" not in file.headers["Content-Disposition"]
    else:
        assert is_openais(answer)
    assert [path.name for path in shared_folder.iterdir()] == ["contexts"]
    assert all(path.name.startswith("ctx-") for path in (shared_folder / "contexts").iterdir())


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800", "a" * 10_000, "\x1b[31m", "\u2028"])
def test_a_name_that_cannot_be_shown_is_refused_before_anything_is_read(post, shared_engine, name):
    num_before = shared_engine.statistics.tokens_by_owner[""]
    answer = post("/v1/contexts", json.dumps({"text": "Call me Ishmael.", "name": name}))
    if answer.status_code == 201:  # no name is one, and what is harmless may be shown
        assert name in ("", "\u2028")
        return
    assert answer.status_code == 400
    assert is_openais(answer)
    assert shared_engine.statistics.tokens_by_owner[""] == num_before


@pytest.fixture(scope="module")
def raw(served, shared_engine, tmp_path_factory):
    """raw(request) -> status of the answer to some bytes, from a server that wants a key."""
    keys = ApiKeys({KEY: ApiKey(name="alice")})
    with served(shared_engine, tmp_path_factory.mktemp("contexts"), keys=keys) as url:
        host, port = url.removeprefix("http://").split(":")

        def send(content):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(content)
                response = http.client.HTTPResponse(connection)
                response.begin()
                response.read()
                return response.status

        yield send


@pytest.mark.parametrize(
    "target",
    [
        "//health",
        "/health/",
        "/health/../v1/contexts",
        "/page/../v1/contexts",
        "/page/..%2fv1/contexts",
        "/page/%2e%2e/v1/contexts",
        "/page/\\..\\..\\etc\\passwd",
        "/page//etc/passwd",
        "/page/../../../../../../etc/passwd",
        "/V1/contexts",
        "/v1//contexts",
        "/v1/contexts?path=/health",
        "/v1/contexts#/health",
        "/v1/contexts;/health",
        "/%00",
        "/%ff%fe",
        "http://127.0.0.1/v1/contexts",
        "*",
    ],
)
def test_no_path_leads_around_the_keys(raw, target):
    status = raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 401, 404)
    assert raw(f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: {target}\r\n\r\n".encode()) == 200


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 127.0.0.1",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /health",
        "X-HTTP-Method-Override: GET",
        "Cookie: key=" + KEY,
        "Proxy-Authorization: Bearer " + KEY,
        "X-Api-Key: " + KEY,
        "authorization : Bearer " + KEY,
        "Authorization: Bearer\r\n " + KEY + "x",
        "Authorization: Bearer " + KEY + "\0",
        "Authorization: Bearer " + "x" * 60_000,
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 1\r\nContent-Length: 2",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_header_leads_around_the_keys(raw, header):
    status = raw(f"GET /v1/contexts HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode("latin-1"))
    assert status in (400, 401, 413, 501)
    assert raw(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()) == 200


def test_a_header_without_end_is_refused(raw):
    assert raw(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 16)) in (400, 431)
