"""Contexts as resources: read once, asked often, forked, cut, searched, downloaded and brought back."""

import json
import threading
import time

import pytest

from goldfinch.serving.app import create_app
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.server import Server

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse. " * 3
GREEDY = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def context(http):
    return http.post("/v1/contexts", json={"text": TEXT, "name": "loomings"}).json()


def test_an_answer_after_a_context_is_that_after_its_text(http, lm, context):
    assert (context["object"], context["name"], context["num_tokens"]) == ("context", "loomings", len(TEXT))
    answer = http.post("/v1/completions", json={"context": context["id"], "prompt": " And then", **GREEDY}).json()
    expected = lm.read(TEXT + " And then").generate(**GREEDY)
    assert answer["choices"][0]["text"] == expected.text
    details = answer["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": len(TEXT), "replayed_tokens": 0, "computed_tokens": 9}
    assert http.get(f"/v1/contexts/{context['id']}").json()["num_tokens"] == len(TEXT)


def test_a_conversation_after_a_context_costs_its_new_tokens(http, context):
    messages = [{"role": "user", "content": "Who is speaking?"}]
    body = {"context": context["id"], "messages": messages, **GREEDY}
    first = http.post("/v1/chat/completions", json=body).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "Why?"}]
    second = http.post("/v1/chat/completions", json=body).json()
    assert second["usage"]["prompt_tokens_details"]["computed_tokens"] < 40
    again = http.post("/v1/chat/completions", json=body).json()
    assert again["choices"] == second["choices"]
    assert again["usage"]["prompt_tokens_details"]["computed_tokens"] == 0


def test_a_context_is_continued_forked_cut_and_removed(http, lm, context):
    path = f"/v1/contexts/{context['id']}"
    fork = http.post(f"{path}/fork", json={"name": "other", "length": 40}).json()
    assert (fork["num_tokens"], fork["name"]) == (40, "other")
    longer = http.post(f"{path}/append", json={"documents": [{"name": "two", "text": "The whale."}]}).json()
    assert longer["num_tokens"] == len(TEXT) + 1 + len("The whale.")  # an end of text parts them
    assert [document["name"] for document in longer["documents"]] == ["two"]
    cut = http.post(f"{path}/truncate", json={"length": 60}).json()
    assert (cut["num_tokens"], cut["documents"]) == (60, [])
    assert cut["replayed_tokens"] <= 60
    for id, length in ((context["id"], 60), (fork["id"], 40)):
        answer = http.post("/v1/completions", json={"context": id, "prompt": "x", **GREEDY}).json()
        assert answer["choices"][0]["text"] == lm.read(TEXT[:length] + "x").generate(**GREEDY).text
    assert http.patch(path, json={"name": "new name"}).json()["name"] == "new name"
    assert {each["name"] for each in http.get("/v1/contexts").json()["data"]} == {"new name", "other"}
    assert http.delete(path).json()["deleted"]
    assert http.get(path).status_code == 404
    assert http.post("/v1/completions", json={"context": context["id"], "prompt": "x"}).status_code == 404


def test_files_are_read_as_documents_with_progress(http):
    files = [("files", ("a/b/one.txt", b"Call me Ishmael.")), ("files", ("two.md", "Wal, ballena, 鯨".encode()))]
    answer = http.post("/v1/contexts/upload", files=files, data={"stream": "true"})
    *progress, context, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    context = json.loads(context)
    assert [document["name"] for document in context["documents"]] == ["one.txt", "two.md"]
    assert json.loads(progress[0])["tokens_total"] == context["num_tokens"]
    text = http.get(f"/v1/contexts/{context['id']}/text", params={"start": context["documents"][1]["start"]}).json()
    assert text["text"] == "Wal, ballena, 鯨"
    found = http.get(f"/v1/contexts/{context['id']}/search", params={"query": "ishmael"}).json()
    assert found["total"] == 1
    assert found["matches"][0] == {
        "start": 8,
        "document": "one.txt",
        "before": "Call me ",
        "match": "Ishmael",
        "after": ".Wal, ballena, 鯨",
    }


def test_a_context_is_downloaded_and_opened_by_another_server(http, lm, context, tmp_path):
    content = http.get(f"/v1/contexts/{context['id']}/file")
    assert "loomings.gfc" in content.headers["Content-Disposition"]
    (tmp_path / "mine.gfc").write_bytes(content.content)
    assert lm.open(tmp_path / "mine.gfc").ids() == lm.encode(TEXT).tolist()
    http.delete(f"/v1/contexts/{context['id']}")
    brought = http.post("/v1/contexts/upload", files={"files": ("mine.gfc", content.content)}).json()
    assert (brought["num_tokens"], brought["name"]) == (len(TEXT), "mine")
    answer = http.post("/v1/completions", json={"context": brought["id"], "prompt": "x", **GREEDY}).json()
    assert answer["choices"][0]["text"] == lm.read(TEXT + "x").generate(**GREEDY).text


def test_contexts_are_there_after_a_restart(http, lm, context, tmp_path):
    from fastapi.testclient import TestClient

    engine = Engine(lm, 1 << 28)
    engine.start()
    client = TestClient(create_app(Server(engine, ContextStore(tmp_path / "contexts", 1 << 30), "small")))
    (same,) = client.get("/v1/contexts").json()["data"]
    assert same["id"] == context["id"]
    body = {"context": same["id"], "prompt": "x", **GREEDY}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == (
        lm.read(TEXT + "x").generate(**GREEDY).text
    )
    engine.stop(10)


@pytest.mark.parametrize("damage", ["cut", "bit", "no file"])
def test_a_file_that_is_no_context_is_refused(http, context, damage):
    content = bytearray(http.get(f"/v1/contexts/{context['id']}/file").content)
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "bit":
        content[-100] ^= 1
    else:
        content = b"Call me Ishmael."
    answer = http.post("/v1/contexts/upload", files={"files": ("mine.gfc", bytes(content))})
    assert answer.status_code == 400
    assert "gfc" in answer.json()["error"]["message"]
    assert len(http.get("/v1/contexts").json()["data"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/contexts", {}, 400),
        ("POST", "/v1/contexts", {"text": "a", "token_ids": [1]}, 400),
        ("POST", "/v1/contexts", {"text": "a", "length": 1}, 400),
        ("POST", "/v1/contexts", {"token_ids": [1 << 40]}, 400),
        ("POST", "/v1/contexts", {"text": "a", "name": "a\nb"}, 400),
        ("POST", "/v1/contexts", {"parent": "../../etc/passwd"}, 404),
        ("GET", "/v1/contexts/..%2F..%2Fetc%2Fpasswd", None, 404),
        ("GET", "/v1/contexts/%00", None, 404),
        ("DELETE", "/v1/contexts/nosuch", None, 404),
        ("GET", "/v1/contexts/ID/text?start=-1", None, 400),
        ("GET", "/v1/contexts/ID/search?query=", None, 400),
        ("POST", "/v1/contexts/ID/truncate", {"length": 100000}, 400),
        ("POST", "/v1/contexts/ID/append", {}, 400),
    ],
)
def test_what_cannot_be_is_refused(http, context, method, path, body, status):
    answer = http.request(method, path.replace("ID", context["id"]), json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_the_contexts_used_longest_ago_make_room(lm, tmp_path):
    contexts = [lm.read(letter * 50) for letter in "abc"]
    contexts[0].save(tmp_path / "size.gfc")
    size = (tmp_path / "size.gfc").stat().st_size
    store = ContextStore(tmp_path / "contexts", int(2.5 * size))
    first, second = (store.add("", context, name) for context, name in zip(contexts, "ab", strict=False))
    time.sleep(0.02)
    store.get("", first.id)
    third = store.add("", contexts[2], "c")
    assert [stored.id for stored in store.list("")] == [third.id, first.id]
    assert not second.path.exists()


def test_a_context_that_cannot_be_written_leaves_nothing_behind(lm, tmp_path, monkeypatch):
    store = ContextStore(tmp_path / "contexts", 1 << 30)
    context = lm.read(TEXT)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(context), "save", full)
    with pytest.raises(OSError, match="no space"):
        store.add("", context, "a")
    assert list((tmp_path / "contexts").iterdir()) == []


def test_two_changes_of_one_context_at_once_never_lose_one_silently(http, context):
    path, answers = f"/v1/contexts/{context['id']}/append", []
    threads = [
        threading.Thread(target=lambda: answers.append(http.post(path, json={"text": "abcd"}))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = sum(answer.status_code == 200 for answer in answers)
    assert {answer.status_code for answer in answers} <= {200, 409}, [answer.text for answer in answers]
    assert http.get(f"/v1/contexts/{context['id']}").json()["num_tokens"] == len(TEXT) + 4 * done
