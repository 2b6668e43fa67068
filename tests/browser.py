"""A browser for the tests of pages: Chromium of the system, driven by playwright."""

import dataclasses
import os
import shutil

import pytest

IGNORED = ("Failed to load resource: net::ERR_FILE_NOT_FOUND",)
"""What the browser says in a test that takes a file away."""


@dataclasses.dataclass
class Visits:
    """Opens pages; what they say on the console, and what they ask for, is kept."""

    browser: object
    said: list[str] = dataclasses.field(default_factory=list)
    asked: list[str] = dataclasses.field(default_factory=list)
    contexts: list = dataclasses.field(default_factory=list)

    def open(self, address: str, *, width: int = 1280, dark: bool = False, ready: str = "html[data-ready]"):
        """Returns a page at an address, once it holds what the selector names."""
        scheme = "dark" if dark else "light"
        context = self.browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(10_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector(ready)
        return page


def browser_path() -> str | None:
    """Returns the path of Chromium, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    """A headless browser; without one, tests are skipped unless REQUIRE_BROWSER=1."""
    path = browser_path()
    if path is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1, and there is no Chromium. Install it: apt-get install chromium")
        pytest.skip("there is no Chromium (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visits(browser):
    """Opens pages; at the end, nothing may have been said on the console or asked of a network."""
    made = Visits(browser)
    yield made
    for context in made.contexts:
        context.close()
    said = [text for text in made.said if not any(one in text for one in IGNORED)]
    assert said == []
    allowed = ("file:", "data:", "blob:", "http://127.0.0.1:")
    assert [url for url in made.asked if not url.startswith(allowed)] == []
