"""What a model writes, as it is shown."""

import re

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def shown(page, model_writes, ask):
    """shown(text) -> the element in which an answer with this text is shown."""

    def shown(text):
        model_writes(page, text)
        return ask(page, "Go on.").locator(".content")

    return shown


HTML = [
    '<img src="https://example.com/x.png" onerror="alert(1)">',
    "<script>alert(1)</script>",
    "# <b>bold</b>",
    "- <iframe src=javascript:alert(1)></iframe>",
    "> <u>quoted</u>",
    "[<i>click</i>](javascript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "**<svg onload=alert(1)>**",
    "| <u>a</u> | b |\n|---|---|\n| <i>c</i> | d |",
    "```html\n<style>body { display: none }</style>\n```",
]


def test_html_is_shown_as_text(shown):
    content = shown("\n\n".join(HTML))
    visible = content.inner_text()
    for source in HTML:
        for tag in re.findall(r"<[^>]+>", source):
            assert tag in visible
    assert content.locator("img, script, iframe, style, b, u, i, svg:not(.icon), a:not([href^=https])").count() == 0


def test_markdown_becomes_elements(shown):
    content = shown(
        "# Whales\n\nA *very* **big** `fish`, says [Melville](https://example.com/a_(b)).\n\n"
        "1. one\n2. two\n   - inner\n   - more\n\n> quoted\n> lines\n\n"
        "| name | tons |\n|---|--:|\n| blue | 140 |\n\n---\n\n```python\nfor x in y:\n    print('<b>')\n```\n\nEnd."
    )
    expect(content.locator("h2")).to_have_text("Whales")
    for tag, text in {"em": "very", "strong": "big", "p code": "fish", "blockquote p": "quoted\nlines"}.items():
        assert content.locator(tag).inner_text() == text
    link = content.get_by_role("link", name="Melville")
    assert link.get_attribute("href") == "https://example.com/a_(b)"
    assert "noopener" in link.get_attribute("rel")
    assert content.locator("ol > li").all_inner_texts()[0] == "one"
    assert content.locator("ol ul > li").all_inner_texts() == ["inner", "more"]
    assert content.locator("td").all_inner_texts() == ["blue", "140"]
    assert content.locator("hr").count() == 1
    assert content.locator("pre code").evaluate("node => node.textContent") == "for x in y:\n    print('<b>')"
    expect(content.locator("figcaption")).to_have_text("python")
    assert content.locator(":scope > p").last.inner_text() == "End."


def test_text_that_only_resembles_markdown_stays(shown):
    lines = ["2 * 3 * 4 and snake_case_name", "a < b && c > d", "**", "`", "[a](b", "\\*not\\*"]
    assert shown("\n\n".join(lines)).locator("p").all_inner_texts() == [line.replace("\\", "") for line in lines]


def test_lines_broken_to_fit_a_page_flow_and_verse_stays(shown):
    page, verse = "It was a line of the full width of a page, and\nthis is its end.", "Tyger Tyger,\nburning bright"
    assert shown(f"{page}\n\n{verse}").locator("p").all_inner_texts() == [page.replace("\n", " "), verse]


def test_code_that_is_not_finished_is_code_already(shown):
    assert shown("```js\nlet x = 1;").locator("pre code").inner_text() == "let x = 1;"


def test_code_is_copied(page, shown):
    content = shown("```\nlet x = 1;\n```")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    content.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("status").last).to_have_text("Code copied")
    assert page.evaluate("navigator.clipboard.readText()") == "let x = 1;"
