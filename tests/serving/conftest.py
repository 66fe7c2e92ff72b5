"""A server on 127.0.0.1."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
import torch
import uvicorn

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.serving.app import create_app
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.server import Server


@pytest.fixture
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
def serve():
    """serve(engine, folder): a server while the context lasts, which is its URL."""

    @contextlib.contextmanager
    def serve(engine, folder):
        listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(Server(engine, ContextStore(folder, 1 << 30), "small"))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return serve


@pytest.fixture
def url(engine, serve, tmp_path):
    """Of a server with this model."""
    with serve(engine, tmp_path / "contexts") as url:
        yield url


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
