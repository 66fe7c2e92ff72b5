"""Sight, hands, screens: the page for everyone, in dark and light, on a phone and a desktop."""

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
ANSWER = (
    "# Ahab\n\nA *captain*, see `Pequod`:\n\n```python\nprint('whale')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | [2](https://example.com) |"
)


def violations(page):
    return [
        f"{rule['id']}: {node['html']}" for rule in Axe().run(page).response["violations"] for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_no_accessibility_rule_is_broken(open_page, model_writes, ask, screen, theme):
    page = open_page(**screen, color_scheme=theme, reduced_motion="reduce")
    assert violations(page) == []
    model_writes(page, ANSWER)
    ask(page, "Who is Ahab?").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("group", name="Branches")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Edit", exact=True).click()
    assert violations(page) == []
    if screen is PHONE:
        page.get_by_role("button", name="Menu", exact=True).click()
        assert violations(page) == []
    page.get_by_role("button", name="Settings").click()
    assert violations(page) == []


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen(open_page, model_writes, ask, screen):
    page = open_page(**screen)
    model_writes(page, f"{'long' * 100}\n\n```\n{'code ' * 100}\n```\n\n| {'cell |' * 40}\n|{'---|' * 40}\n")
    ask(page, "w" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["viewport"]["width"]
    assert page.locator("#transcript").evaluate("node => node.scrollWidth - node.clientWidth") == 0


def test_the_theme_is_the_systems_until_one_is_chosen(open_page):
    page = open_page(color_scheme="dark")

    def brightness():
        color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return int(color.split("(")[1].split(",")[0])

    assert brightness() < 60
    page.get_by_role("button", name="Dark or light").click()
    assert brightness() > 200
    page.reload()
    assert brightness() > 200


def test_a_conversation_by_keyboard_alone(page):
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("Who is")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Ahab?")
    page.keyboard.press("Enter")
    expect(page.get_by_label("You", exact=True).locator(".content")).to_have_text("Who is\nAhab?", use_inner_text=True)
    page.get_by_role("button", name="Retry").wait_for()
    page.get_by_role("button", name="Retry").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="Branches")).to_contain_text("2/2")
    page.get_by_role("button", name="Previous branch").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="Branches")).to_contain_text("1/2")


def test_the_lists_can_be_skipped(page):
    link = page.get_by_role("link", name="Skip to the message field")
    expect(link).not_to_be_in_viewport()
    link.focus()
    expect(link).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_an_answer_is_read_aloud_once_when_it_is_complete(page, model_writes, ask):
    page.evaluate(
        "window.heard = []; new MutationObserver(() => heard.push(document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), { childList: true })"
    )
    model_writes(page, "The captain of the Pequod.")
    ask(page, "Who is Ahab?")
    assert page.evaluate("heard") == ["Answer: The captain of the Pequod."]


def test_the_menu_of_a_phone_opens_and_closes(open_page):
    page = open_page(**PHONE)
    menu = page.get_by_role("button", name="Menu", exact=True)
    expect(page.get_by_role("navigation")).not_to_be_visible()
    menu.click()
    expect(page.get_by_role("navigation")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("navigation")).not_to_be_visible()
