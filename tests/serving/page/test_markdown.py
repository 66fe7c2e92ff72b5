"""What a model writes, as it is shown."""

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def shown(page, model_writes, ask):
    """shown(text) -> the element in which an answer with this text is shown."""

    def shown(text):
        model_writes(page, text)
        return ask(page, "Go on.").locator(".content")

    return shown


@pytest.mark.parametrize(
    "text",
    [
        '<img src="https://example.com/x.png" onerror="alert(1)">',
        "<script>alert(1)</script>",
        "# <b>bold</b>",
        "- <iframe src=javascript:alert(1)></iframe>",
        "| <u>a</u> | b |\n|---|---|\n| <i>c</i> | d |",
        "```html\n<style>body { display: none }</style>\n```",
        "[click](javascript:alert(1))",
        "[click](data:text/html,<script>alert(1)</script>)",
        "**<svg onload=alert(1)>**",
    ],
)
def test_html_is_shown_as_text(shown, text):
    content = shown(text)
    words = text.strip("#-|*` \n").split("\n")[0].split(" | ")[0].removeprefix("html")
    assert words in content.inner_text() or "display: none" in content.inner_text()
    assert content.locator("img, script, iframe, style, b, u, i, svg:not(.icon), a[href^=javascript], a[href^=data]").count() == 0


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


@pytest.mark.parametrize("text", ["2 * 3 * 4 and snake_case_name", "a < b && c > d", "**", "`", "[a](b", "\\*not\\*"])
def test_text_that_only_resembles_markdown_stays(shown, text):
    assert shown(text).inner_text() == text.replace("\\", "")


def test_code_that_is_not_finished_is_code_already(shown):
    assert shown("```js\nlet x = 1;").locator("pre code").inner_text() == "let x = 1;"


def test_code_is_copied(page, shown):
    content = shown("```\nlet x = 1;\n```")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    content.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("status").last).to_have_text("Code copied")
    assert page.evaluate("navigator.clipboard.readText()") == "let x = 1;"
