"""What a person reads when something goes wrong, and how it goes on."""

import json

import pytest

expect = pytest.importorskip("playwright.sync_api").expect

CHAT = "**/v1/chat/completions"


def fails(page, status, message="no", headers=None, pattern=CHAT):
    body = json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
    page.route(pattern, lambda route: route.fulfill(status=status, body=body, headers=headers or {}))


def answer(page):
    return page.get_by_label("Answer", exact=True)


def recovers(page):
    """Retry gives an answer, in place of the failure."""
    page.unroute(CHAT)
    answer(page).get_by_role("button", name="Retry").click()
    expect(answer(page).locator(".cost")).to_be_visible()
    expect(page.get_by_role("group", name="Branches")).to_have_count(0)


def test_a_server_that_is_gone(page, send):
    page.route(CHAT, lambda route: route.abort("connectionrefused"))
    send(page, "Who is Ahab?")
    expect(answer(page)).to_contain_text("The server does not answer")
    recovers(page)


def test_a_server_that_is_gone_when_the_page_is_opened(page):
    page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/v1/models")
    page.get_by_role("alert").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#model-name")).to_have_text("small")


def test_a_full_queue_is_retried_when_the_server_said(page, send):
    fails(page, 429, "too many requests wait", headers={"Retry-After": "2"})
    send(page, "Who is Ahab?")
    expect(answer(page)).to_contain_text("The server is busy: too many requests wait.")
    waiting = answer(page).get_by_role("button", name="Retry in")
    expect(waiting).to_be_disabled()
    expect(answer(page).get_by_role("button", name="Retry in")).to_have_count(0)
    recovers(page)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (503, "shutting down"),
        (500, "Something went wrong in the server: no"),
        (413, "more than the server has room for: no"),
        (507, "more than the server has room for: no"),
        (400, "no"),
    ],
)
def test_each_status_has_its_words(page, send, status, words):
    fails(page, status)
    send(page, "Who is Ahab?")
    expect(answer(page).locator(".failure")).to_contain_text(words)
    # It is kept, and said again after a reload.
    page.reload()
    page.locator("#conversations button", has_text="Who is Ahab?").first.click()
    expect(answer(page).locator(".failure")).to_contain_text(words)


def test_a_stream_that_breaks_off_keeps_what_came(page, send):
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}]})
    page.route(CHAT, lambda route: route.fulfill(body=f"data: {chunk}\n\n", content_type="text/event-stream"))
    send(page, "Who is Ahab?")
    expect(answer(page)).to_contain_text("Half an")
    expect(answer(page)).to_contain_text("connection to the server was lost")


def test_an_error_within_a_stream(page, send):
    error = json.dumps({"error": {"message": "the prompt has a bad token", "type": "x", "param": None, "code": None}})
    page.route(CHAT, lambda route: route.fulfill(body=f"data: {error}\n\n", content_type="text/event-stream"))
    send(page, "Who is Ahab?")
    expect(answer(page)).to_contain_text("the prompt has a bad token")


def test_a_key_is_asked_for_and_sent(page, send):
    keys = []

    def check(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, body=json.dumps({"error": {"message": "no key"}}))

    page.route("**/v1/**", check)
    page.reload()
    page.get_by_role("dialog").get_by_role("textbox").fill("secret")
    page.keyboard.press("Enter")
    send(page, "Who is Ahab?")
    expect(answer(page).locator(".cost")).to_be_visible()
    assert keys[0] is None
    assert set(keys[1:]) == {"Bearer secret"}


def test_a_browser_that_keeps_nothing_still_answers(open_page, ask):
    page = open_page()
    page.add_init_script("indexedDB.open = () => { throw new DOMException('denied', 'SecurityError') }")
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("keeps nothing")
    ask(page, "Who is Ahab?")
