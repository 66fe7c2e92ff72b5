"""The page in a real browser: Debian's chromium, driven by playwright."""

import json
import re
import shutil

import pytest
import torch

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel
from goldfinch.serving.engine import Engine

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'goldfinch[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # It runs as root in containers, where the sandbox is not to be had.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(small_config, small_model, served, tmp_path_factory):
    """Of a server with a small model, for all tests of a module."""
    config = small_config("finch_c2", "gold", vocab_size=257)
    engine = Engine(LanguageModel(small_model(config, torch.float32), ByteTokenizer()), max_bytes=1 << 28)
    engine.start()
    with served(engine, tmp_path_factory.mktemp("contexts")) as url:
        yield url
    engine.stop(10)


@pytest.fixture
def open_page(browser, url):
    """open_page(**options of a browser context) -> the page, of which nothing may fail or ask another server."""
    contexts, problems = [], []

    def refuse(route):
        problems.append(f"asked another server: {route.request.url}")
        route.abort()

    def open_(**options):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        # Answers are short, unless a test sets another number.
        context.add_init_script("localStorage['goldfinch.settings'] ??= JSON.stringify({ max_tokens: 8 })")
        context.route(re.compile(f"^(?!{re.escape(url)}/|blob:|data:)"), refuse)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.goto(url)
        page.locator("#model-name", has_text="small").wait_for(state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    # Statuses of 400 and more that a test asks for are in the console as well.
    assert [problem for problem in problems if not problem.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page):
    """The page on a desktop."""
    return open_page()


@pytest.fixture
def send():
    """send(page, text): write it in the message field and press Enter."""

    def send(page, text):
        page.get_by_label("Message", exact=True).fill(text)
        page.keyboard.press("Enter")

    return send


@pytest.fixture
def ask(send):
    """ask(page, text) -> the answer's element when it is finished."""

    def ask(page, text):
        number = page.get_by_label("Answer", exact=True).count()
        send(page, text)
        answer = page.get_by_label("Answer", exact=True).nth(number)
        answer.get_by_role("button", name="Retry").wait_for()
        return answer

    return ask


@pytest.fixture
def model_writes():
    """model_writes(page, text): the next answers are this text, as the server would stream it."""

    def model_writes(page, text):
        chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in text]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        lines = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        body = "".join(f"data: {line}\n\n" for line in lines)
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))

    return model_writes


@pytest.fixture
def requests_of():
    """requests_of(page, path) -> a list that grows with the JSON bodies sent there."""

    def requests_of(page, path):
        bodies = []
        page.on(
            "request", lambda request: bodies.append(request.post_data_json) if request.url.endswith(path) else None
        )
        return bodies

    return requests_of
