"""A server on 127.0.0.1."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import httpx
import pytest
import torch
import uvicorn

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.serving.app import create_app
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.http_server import uvicorn_config
from goldfinch.serving.middleware import HttpLimits
from goldfinch.serving.server import Server


@pytest.fixture(scope="session")
def lm(small_config, small_model):
    return LanguageModel(small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32), ByteTokenizer())


@pytest.fixture
def engine(lm):
    """An engine that runs."""
    engine = Engine(lm, max_bytes=1 << 28)
    engine.start()
    yield engine
    engine.stop(10)


@pytest.fixture(scope="session")
def served():
    """served(engine, folder, **limits): a context with the URL of a server; `limits` are those of `HttpLimits`."""

    @contextlib.contextmanager
    def serve(engine, folder, **limits):
        listener = socket.create_server(("127.0.0.1", 0))
        keys = limits.get("keys")
        store = ContextStore(folder, 1 << 30, keys and keys.max_context_bytes())
        app = create_app(Server(engine, store, "small"), HttpLimits(**limits))
        server = uvicorn.Server(uvicorn_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return serve


@pytest.fixture
def start(served, engine, tmp_path):
    """start(**limits) -> URL of a server with this model."""
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(served(engine, tmp_path / "contexts", **limits))


@pytest.fixture
def url(start):
    """Of a server with this model."""
    return start()


@pytest.fixture
def http(url):
    """A client of it."""
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def shared_engine(lm):
    """An engine for all tests of a module, which has to go on whatever is sent."""
    engine = Engine(lm, max_bytes=1 << 28)
    engine.start()
    yield engine
    engine.stop(10)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """In which its contexts are in a folder."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def shared_url(served, shared_engine, shared_folder):
    """Of its server."""
    with served(shared_engine, shared_folder / "contexts") as url:
        yield url


@pytest.fixture
def client_of(start):
    """client_of(**limits) -> a function from headers to a client of one server with these limits."""
    with contextlib.ExitStack() as stack:

        def make(**limits):
            url = start(**limits)
            return lambda headers=(): stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

        yield make


@pytest.fixture
def ask(url):
    """ask(path, **body) -> the answer; a list of chunks if it is streamed."""

    def send(path, **body):
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                content = answer.read().decode()
        except urllib.error.HTTPError as error:
            return json.loads(error.read())
        if not body.get("stream"):
            return json.loads(content)
        lines = [line.removeprefix("data: ") for line in content.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    return send
