"""Texts: dropped, read, asked about, searched, downloaded and brought back."""

import json
import urllib.request

import pytest

expect = pytest.importorskip("playwright.sync_api").expect

STORY = "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea.\n" * 40 + "There she blows!\n"


@pytest.fixture
def page(open_page, url):
    """The page, with no text on the server."""
    with urllib.request.urlopen(f"{url}/v1/contexts") as answer:
        contexts = json.load(answer)["data"]
    for context in contexts:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/contexts/{context['id']}", method="DELETE")).close()
    return open_page()


@pytest.fixture
def read(page, tmp_path):
    """read(name=content, ...): choose files with these names (and .txt) and wait until they are read."""

    def read(**contents):
        paths = []
        for name, content in contents.items():
            paths.append(tmp_path / f"{name}.txt")
            paths[-1].write_text(content)
        page.set_input_files("#files", paths)
        first = next(iter(contents))
        expect(page.get_by_role("button", name=first).first).to_be_visible()

    return read


@pytest.fixture
def uploads(page):
    """What the page sends to be read, and does not come to the server until the test says so."""
    held = []

    def hold(route):
        held.append(route)

    page.route("**/v1/contexts/upload", hold)
    return held


def text(page, name):
    return page.locator("#texts").get_by_role("button", name=name)


def panel(page):
    return page.get_by_role("complementary")


def test_a_text_is_read_and_asked_about_at_once(page, read, ask, requests_of):
    bodies = requests_of(page, "/v1/chat/completions")
    read(ishmael=STORY)
    expect(page.get_by_role("heading", name="ishmael").first).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    cost = ask(page, "Who am I?").locator(".cost").inner_text()
    (context,) = page.evaluate("fetch('v1/contexts').then((answer) => answer.json())")["data"]
    assert bodies[0]["context"] == context["id"]
    # The text itself was not read again.
    assert f"{context['num_tokens']:,} cached" in cost
    assert context["num_tokens"] == len(STORY)
    page.reload()
    page.locator("#conversations").get_by_role("button", name="Who am I?").first.click()
    expect(page.locator("#about")).to_contain_text("ishmael")


def test_a_question_that_is_asked_while_the_text_is_read_waits_for_it(page, uploads, tmp_path, requests_of):
    bodies = requests_of(page, "/v1/chat/completions")
    (tmp_path / "ishmael.txt").write_text(STORY)
    page.set_input_files("#files", [tmp_path / "ishmael.txt"])
    expect(page.get_by_role("heading", name="Reading ishmael")).to_be_visible()
    field = page.get_by_label("Message", exact=True)
    field.fill("Who?")
    field.press("Enter")
    expect(page.locator("#notice")).to_contain_text("will be sent when the text has been read")
    assert bodies == []
    uploads[0].continue_()
    page.get_by_label("Answer", exact=True).get_by_role("button", name="Retry").wait_for()
    expect(field).to_have_value("")
    assert len(bodies) == 1
    assert bodies[0]["context"]


def test_a_question_stays_in_the_field_if_the_text_is_not_read(page, uploads, tmp_path, requests_of):
    bodies = requests_of(page, "/v1/chat/completions")
    (tmp_path / "ishmael.txt").write_text(STORY)
    page.set_input_files("#files", [tmp_path / "ishmael.txt"])
    field = page.get_by_label("Message", exact=True)
    field.fill("Who?")
    field.press("Enter")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#notice")).to_be_empty()
    expect(field).to_have_value("Who?")
    assert bodies == []


def test_reading_shows_progress_time_left_and_sizes_and_can_be_cancelled(page, tmp_path):
    progress = {"object": "context.progress", "tokens_read": 250, "tokens_total": 1000, "seconds_left": 75.0}
    progress |= {"bytes": 12_400_000, "transformer_bytes": 9_374_400_000}
    # Never ends, as far as the page can see.
    page.evaluate(
        """(event) => {
          const real = window.fetch;
          window.fetch = (path, options) => {
            if (path !== "v1/contexts/upload") return real(path, options);
            const body = new ReadableStream({
              start(stream) {
                stream.enqueue(new TextEncoder().encode(`data: ${event}\\n\\n`));
                options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
              },
            });
            return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
          };
        }""",
        json.dumps(progress),
    )
    (tmp_path / "moby-dick.txt").write_text(STORY)
    page.set_input_files("#files", tmp_path / "moby-dick.txt")
    card = page.get_by_role("region", name="Reading moby-dick")
    expect(card).to_contain_text("250 of 1,000 tokens · 75 s left")
    expect(card).to_contain_text("12.4 MB: 756 times less than the cache of a Transformer of this size (9.37 GB)")
    assert card.get_by_role("progressbar").evaluate("bar => bar.value") == 0.25
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_count(0)
    expect(page.get_by_role("alert")).to_be_empty()


def test_files_can_be_dropped(page):
    transfer = page.evaluate_handle(
        "(text) => { const data = new DataTransfer(); data.items.add(new File([text], 'dropped.txt')); return data; }",
        STORY,
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop texts here to read them")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop texts here to read them")).to_be_hidden()
    expect(text(page, "dropped")).to_be_visible()


def test_several_files_are_documents_of_one_text(page, read):
    read(one=STORY, two="The second one.")
    expect(page.locator("#texts li")).to_have_count(1)
    panel(page).get_by_role("button", name="two.txt").click()
    expect(panel(page).get_by_role("blockquote")).to_have_text("The second one.")


def test_one_of_several_texts_is_chosen_renamed_and_deleted(page, read, ask):
    read(ishmael=STORY)
    ask(page, "Who am I?")
    read(bartleby="I would prefer not to. " * 20)
    # The conversation about the first is still about the first.
    expect(page.get_by_role("heading", level=1)).to_have_text("New conversation")
    text(page, "ishmael").click()
    expect(page.locator("#about")).to_contain_text("ishmael")
    panel(page).get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("Chapter 1")
    page.keyboard.press("Enter")
    expect(text(page, "Chapter 1")).to_be_visible()
    expect(panel(page).get_by_role("heading", name="Chapter 1")).to_be_visible()
    panel(page).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#texts li")).to_have_count(1)
    expect(panel(page)).to_be_hidden()
    page.locator("#conversations").get_by_role("button", name="Who am I?").first.click()
    expect(page.locator("#about")).to_contain_text("no longer on the server")


def test_a_text_is_downloaded_and_brought_back(page, read, ask, tmp_path):
    read(ishmael=STORY)
    with page.expect_download() as download:
        panel(page).get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ishmael.gfc"
    download.value.save_as(tmp_path / "ishmael.gfc")
    panel(page).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(text(page, "ishmael")).to_have_count(0)
    page.set_input_files("#files", tmp_path / "ishmael.gfc")
    expect(text(page, "ishmael")).to_contain_text(f"{len(STORY):,} tokens")
    assert f"{len(STORY):,} cached" in ask(page, "Who am I?").locator(".cost").inner_text()


def test_a_search_shows_where_and_the_text_around_it(page, read):
    read(ishmael=STORY)
    panel(page).get_by_label("Search this text").fill("she BLOWS")
    page.keyboard.press("Enter")
    expect(panel(page)).to_contain_text("1 place")
    found = panel(page).get_by_role("button", name="she blows")
    expect(found).to_contain_text(f"ishmael.txt · token {STORY.index('she blows'):,}")
    found.click()
    expect(panel(page).get_by_role("blockquote").locator("mark")).to_have_text("she blows")
    expect(panel(page).get_by_role("blockquote")).to_contain_text("I went to sea. There she blows!")
    panel(page).get_by_label("Search this text").fill("kraken")
    page.keyboard.press("Enter")
    expect(panel(page)).to_contain_text("“kraken” is not in this text.")


def test_memory_is_shown_by_part_next_to_a_transformers(page, read):
    read(ishmael=STORY)
    model = page.evaluate("fetch('v1/models').then((answer) => answer.json())")["data"][0]["goldfinch"]
    rows = panel(page).locator(".memory-row").all_inner_texts()
    sizes = {
        name: float(size.split()[0]) * {"B": 1, "kB": 1e3, "MB": 1e6}[size.split()[1]]
        for name, size in map(str.splitlines, rows)
    }
    expected = {
        "State": model["state_bytes"],
        "Latents": model["bytes_per_token"] * len(STORY),
        "A Transformer's cache": model["transformer_bytes_per_token"] * len(STORY),
    }
    assert sizes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cover.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "cover.jpg is not a text file (UTF-8)"),
        ("latin.txt", "Bär".encode("latin-1"), "latin.txt is not a text file (UTF-8)"),
        ("zeros.txt", b"a\0b", "zeros.txt is not a text file (UTF-8)"),
        ("empty.txt", b"", "is empty"),
        ("broken.gfc", b"no context", "broken.gfc is not a .gfc context file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(page, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    page.set_input_files("#files", tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_label("Reading")).to_have_count(0)
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_text_that_is_too_large_has_its_words(page, tmp_path):
    body = json.dumps(
        {"error": {"message": "all contexts may take 10 GiB", "type": "invalid_request_error", "code": None}}
    )
    page.route("**/v1/contexts/upload", lambda route: route.fulfill(status=413, body=body))
    (tmp_path / "large.txt").write_text(STORY)
    page.set_input_files("#files", tmp_path / "large.txt")
    expect(page.get_by_role("alert")).to_contain_text("more than the server has room for: all contexts may take 10 GiB")
