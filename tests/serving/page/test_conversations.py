"""What a person does with a conversation."""

import json
import re

import pytest

expect = pytest.importorskip("playwright.sync_api").expect

COST = re.compile(r"\d tokens/s.*\d cached · \d+ replayed · \d+ computed")


def you(page):
    return page.get_by_label("You", exact=True)


def branch(page):
    return page.get_by_role("group", name="Branches")


def history(page, title):
    return page.locator("#conversations").get_by_role("button", name=title, exact=True)


def never_ends(page):
    """Answers go on until they are stopped: the end of the text is not sampled."""

    def change(route):
        body = route.request.post_data_json | {"max_tokens": 1_000_000, "logit_bias": {"256": -1000}}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", change)


def test_an_answer_has_its_speed_and_its_cost_and_is_there_after_a_reload(page, ask):
    first = ask(page, "Who is Ahab?")
    assert COST.search(first.locator(".cost").inner_text().replace("\n", " "))
    assert re.search(r"\b0 cached", first.locator(".cost").inner_text())
    second = ask(page, "And what does he want?")
    assert not re.search(r"\b0 cached", second.locator(".cost").inner_text())
    text = first.locator(".content").inner_text()
    page.reload()
    history(page, "Who is Ahab?").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Who is Ahab?")
    assert page.get_by_label("Answer", exact=True).first.locator(".content").inner_text() == text
    assert page.get_by_label("Answer", exact=True).count() == you(page).count() == 2


@pytest.mark.parametrize("stop", ["key", "button"])
def test_an_answer_can_be_stopped_and_what_was_written_stays(page, send, stop):
    never_ends(page)
    send(page, "Tell me everything.")
    answer = page.get_by_label("Answer", exact=True)
    expect(answer.locator(".content")).not_to_be_empty()
    if stop == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("Stopped.")
    expect(answer.locator(".content")).not_to_be_empty()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_another_conversation_can_be_used_while_one_is_answered(page, send):
    never_ends(page)
    send(page, "Tell me everything.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    history(page, "Tell me everything.").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Answer", exact=True)).to_contain_text("Stopped.")


def test_a_retry_is_a_branch_and_the_chosen_branch_is_kept(page, ask):
    answer = ask(page, "Who is Ahab?")
    first = answer.locator(".content").inner_text()
    answer.get_by_role("button", name="Retry").click()
    expect(branch(page)).to_contain_text("2/2")
    page.get_by_role("button", name="Previous branch").click()
    expect(branch(page)).to_contain_text("1/2")
    assert answer.locator(".content").inner_text() == first
    page.reload()
    history(page, "Who is Ahab?").click()
    expect(branch(page)).to_contain_text("1/2")
    expect(page.get_by_role("button", name="Previous branch")).to_be_disabled()


def test_an_edited_message_is_a_branch_whose_cost_is_told_before_and_after(page, ask, requests_of):
    ask(page, "Who is Ahab, the captain of the ship that everybody talks about here in Nantucket?")
    ask(page, "Why?")
    bodies = requests_of(page, "/v1/chat/completions")
    you(page).nth(1).get_by_role("button", name="Edit").click()
    field = page.get_by_label("Edit your message")
    field.fill("Why the whale?")
    expect(page.get_by_text(f"About {len('Why the whale?')} tokens will be read again")).to_be_visible()
    field.press("Enter")
    expect(you(page).nth(1)).to_contain_text("Why the whale?")
    answer = page.get_by_label("Answer", exact=True).nth(1)
    # What comes before the edited message was not read again.
    cached, replayed, computed = map(int, re.findall(r"(\d+) (?:c|r)\w+", answer.locator(".cost").inner_text()))
    assert cached > 80 > computed > 0
    assert replayed <= cached
    assert [message["content"] for message in bodies[0]["messages"]][::2] == [
        you(page).nth(0).inner_text(),
        "Why the whale?",
    ]
    you(page).nth(1).get_by_role("button", name="Previous branch").click()
    expect(you(page).nth(1)).to_contain_text("Why?")


def test_escape_leaves_an_edited_message_as_it_was(page, ask):
    ask(page, "Who is Ahab?")
    you(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("Never mind")
    page.keyboard.press("Escape")
    expect(you(page)).to_contain_text("Who is Ahab?")
    expect(branch(page)).to_have_count(0)


def test_conversations_are_renamed_found_and_deleted(page, ask):
    for number in range(5):
        page.get_by_role("button", name="New conversation").click()
        ask(page, f"Question {number}")
    page.locator(".entry", has_text="Question 3").hover()
    page.get_by_role("button", name="Rename Question 3").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("The whale")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(history(page, "The whale")).to_be_visible()
    # Also by what was said.
    page.get_by_label("Find a conversation").fill("question 3")
    expect(page.locator("#conversations li")).to_have_count(1)
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete The whale").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#conversations")).to_contain_text("None has these words.")
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(4)


def test_conversations_travel_as_a_file(page, open_page, ask, tmp_path):
    answer = ask(page, "Who is <b>Ahab</b>?")
    text = answer.locator(".content").inner_text()
    page.get_by_role("button", name="Settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(tmp_path / "conversations.json")
    other = open_page()
    other.get_by_role("button", name="Settings").click()
    other.set_input_files("#import-file", tmp_path / "conversations.json")
    history(other, "Who is <b>Ahab</b>?").click()
    assert other.get_by_label("Answer", exact=True).locator(".content").inner_text() == text


@pytest.mark.parametrize("content", ["no JSON", "{}", '{"conversations": [{"id": "x", "messages": 3}]}'])
def test_a_file_that_is_no_export_is_refused(page, tmp_path, content):
    (tmp_path / "notes.json").write_text(content)
    page.get_by_role("button", name="Settings").click()
    page.set_input_files("#import-file", tmp_path / "notes.json")
    expect(page.get_by_role("alert")).to_contain_text("notes.json does not hold conversations")
    expect(page.locator("#conversations")).to_contain_text("None yet.")


def test_the_system_prompt_and_sampling_reach_the_server(page, ask, requests_of):
    bodies = requests_of(page, "/v1/chat/completions")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    values = {"Temperature": 0, "Top p": 0.9, "Top k": 20, "Min p": 0.05, "Max tokens": 6, "Seed": 7}
    for label, value in values.items():
        page.get_by_label(label).fill(str(value))
    page.get_by_role("button", name="Close settings").click()
    first, second = (ask(page, "Who is Ahab?").locator(".content").inner_text() for _ in range(2))
    sent = {label: bodies[0][label.lower().replace(" ", "_")] for label in values}
    assert sent == values
    assert bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert first
    assert second
    expect(page.get_by_label("Answer", exact=True).first).to_contain_text("maximum number of tokens")
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Min p")).to_have_value("0.05")
    expect(page.get_by_label("System prompt")).to_have_value("")


def test_a_value_that_cannot_be_is_not_sent(page, ask, requests_of):
    bodies = requests_of(page, "/v1/chat/completions")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Top p").fill("7")
    expect(page.get_by_label("Top p")).to_have_attribute("aria-invalid", "true")
    page.keyboard.press("Escape")
    ask(page, "Who is Ahab?")
    assert "top_p" not in bodies[0]


def test_a_text_is_continued_as_it_is_and_again_where_it_ends(page, ask, requests_of):
    bodies = requests_of(page, "/v1/completions")
    page.get_by_text("Continue text").click()
    ask(page, "Call me")
    ask(page, "")
    assert bodies[0]["prompt"] == "Call me"
    written = page.get_by_label("Answer", exact=True).first.locator(".content").evaluate("node => node.textContent")
    assert bodies[1]["prompt"] == f"Call me{written}"
    # The mode is remembered.
    page.reload()
    expect(page.get_by_role("radio", name="Continue text")).to_be_checked()
