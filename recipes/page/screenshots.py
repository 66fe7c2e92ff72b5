"""Take the README's pictures of the page: a model is served, reads the first chapters of Moby-Dick, and is asked.

python recipes/page/screenshots.py runs/quickstart -o docs/images

Needs `pip install -e '.[dev]'` and a browser (apt-get install chromium).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from goldfinch.data.moby_dick import moby_dick_chapters

NUM_CHAPTERS = 16
QUESTION = "Who is Captain Ahab?"
WORD = "Ahab"
# Of the same question the answer is the same.
SETTINGS = '{"temperature": 0.6, "top_p": 0.9, "max_tokens": 90, "seed": 1}'
SCREENS: dict[str, dict[str, Any]] = {
    "page-desktop": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "page-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("needs a browser: apt-get install chromium")
    with serving(arguments.model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in SCREENS.items():
            path = arguments.output / f"{name}.png"
            take(browser, url, path, options)
            print(f"{path}: {path.stat().st_size:,} bytes")
        browser.close()


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """A server with this model; the value is its address."""
    command = [sys.executable, "-m", "goldfinch", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split(" at ")[1].split(",")[0]
        finally:
            process.terminate()


def take(browser: Browser, url: str, path: Path, options: dict[str, Any]) -> None:
    """Read the text if the server has not, ask, and take a picture."""
    context = browser.new_context(**options)
    context.add_init_script(f"localStorage['goldfinch.settings'] = '{SETTINGS}'")
    page = context.new_page()
    page.goto(url)
    page.locator("#texts li").first.wait_for(state="attached")
    text = page.locator("#texts").get_by_role("button", name="Moby-Dick")
    if text.count():
        page.get_by_role("button", name="Menu", exact=True).click()
        text.click()
    else:
        read(page)
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_label("Answer", exact=True).get_by_role("button", name="Retry").wait_for(timeout=120_000)
    panel = page.get_by_role("complementary")
    if panel.is_visible():
        panel.get_by_label("Search this text").fill(WORD)
        page.keyboard.press("Enter")
        panel.locator("mark").first.wait_for()
        page.get_by_label("Message", exact=True).focus()
    page.screenshot(path=path)
    context.close()


def read(page: Page) -> None:
    """Read the first chapters."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "Moby-Dick.txt"
        file.write_text("\n\n".join(moby_dick_chapters()[:NUM_CHAPTERS]), encoding="utf-8")
        page.set_input_files("#files", file)
        page.locator("#about").wait_for(timeout=600_000)


if __name__ == "__main__":
    main()
