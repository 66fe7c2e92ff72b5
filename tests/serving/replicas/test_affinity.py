"""Which requests go to the same replica."""

import json

import pytest

from goldfinch.serving.replicas.affinity import affinity_key
from goldfinch.serving.replicas.messages import HttpRequest

LONG = "Call me Ishmael. " * 100


def key(path, body=None, method="POST", owner="alice"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return affinity_key(
        HttpRequest(method=method, path=path, raw_path=b"", query_string=b"", headers=(), body=content, owner=owner)
    )


def chat(*contents, **fields):
    roles = ["system", *["user", "assistant"] * 8]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return key("/v1/chat/completions", {"messages": messages} | fields)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(chat("be kind", "hello"), chat("be kind", "hello", "hi", "and now?"), id="the next turn"),
        pytest.param(
            key("/v1/completions", {"prompt": LONG}), key("/v1/completions", {"prompt": LONG + "More."}), id="a text"
        ),
        pytest.param(
            key("/v1/completions", {"prompt": [7] * 300}), key("/v1/completions", {"prompt": [7] * 301}), id="ids"
        ),
        pytest.param(
            key("/v1/completions", {"prompt": "a", "context": "ctx-1"}),
            key("/v1/contexts/ctx-1/append", {"text": "b"}),
            id="a context",
        ),
        pytest.param(
            key("/v1/contexts/ctx-1", method="GET"), key("/v1/contexts", {"parent": "ctx-1"}), id="its continuation"
        ),
        pytest.param(
            chat("a", "b", prompt_cache_key="k"), chat("c", "d", prompt_cache_key="k"), id="what the client names"
        ),
        pytest.param(
            key("/v1/responses", {"input": [{"role": "user", "content": "x"}]}),
            key("/v1/responses", {"input": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
            id="a response",
        ),
    ],
)
def test_what_continues_the_same_text_stays_together(first, second):
    assert first == second != ""


def test_other_texts_and_other_owners_are_on_their_own():
    assert chat("be kind", "hello") != chat("be kind", "goodbye")
    same = {"prompt": "Call me"}
    assert key("/v1/completions", same, owner="alice") != key("/v1/completions", same, owner="bob")


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"3", b'{"messages": 3}', b'{"prompt": []}', b"{}"])
def test_a_body_that_says_nothing_may_go_anywhere(body):
    key("/v1/chat/completions", body)  # its replica refuses it
    assert key("/v1/contexts", method="GET") == key("/v1/contexts/upload", body) == ""
