"""How fast a dashboard opens, and what it keeps in memory: a made-up dictionary of 50,000 latents.

    PYTHONPATH=. python benchmarks/dashboard.py [--latents 50000] [--folder FOLDER]

Prints the time that the folder takes to be written and its size; then, of headless Chromium, the
time until the list can be used, until a latent's page is drawn, of the first and a later search, of
a sort, and the JavaScript heap after each. Ends with status 1 if the page opens in more than 1 s or
the heap is over 200 MB.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from dictionary_learning._disk import size_on_disk
from dictionary_learning.dashboards import write_dashboard
from tests.browser import browser_path
from tests.dashboards import fake

OPENS_IN, HEAP = 1.0, 200e6
N_CONTEXTS = 500
"""Different contexts that are made up; latents share them."""


def main() -> int:
    """Writes the folder and opens it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=50_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "dashboard"
        start = time.perf_counter()
        known = [fake.contexts(i, 5.0) for i in range(N_CONTEXTS)]
        page = fake.page("large", given.latents, contexts=lambda latent: known[latent % N_CONTEXTS])
        write_dashboard([page], folder)
        print(f"written in {time.perf_counter() - start:.1f} s, {size_on_disk([folder]) / 1e6:.0f} MB")
        return measure(f"file://{folder.resolve()}/index.html")


def measure(address: str) -> int:
    """Opens the page; returns 1 if it is too slow or too large."""
    with sync_playwright() as playwright:
        options: list[str] = ["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"]
        browser = playwright.chromium.launch(executable_path=browser_path(), args=options)
        browser.new_page().goto("about:blank")  # the browser's own start is not the page's
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        page.goto(address, wait_until="commit")  # what is loaded later does not count
        page.wait_for_selector("#row-0")
        opened = time.perf_counter() - start
        page.wait_for_selector("html[data-ready]")
        print(f"list after {opened:.2f} s, map and labels after {time.perf_counter() - start:.2f} s", heap(page))
        start = time.perf_counter()
        page.click("#row-5")
        page.wait_for_selector(".contexts")
        print(f"latent after {time.perf_counter() - start:.2f} s", heap(page))
        for query in ("union", "word4 bold"):
            start = time.perf_counter()
            page.fill("#query", query)
            page.wait_for_selector(f"#list[data-query='{query}']")
            print(f"search after {time.perf_counter() - start:.2f} s", heap(page))
        page.fill("#query", "")
        page.wait_for_selector("#list[data-query='']")
        start = time.perf_counter()
        page.select_option("#sort", "density")
        page.wait_for_selector("#row-0")
        print(f"sort after {time.perf_counter() - start:.2f} s", heap(page))
        for latent in range(0, 50_000, 1_500):
            page.evaluate("address => { location.hash = address; }", f"large/{latent}")
            page.wait_for_selector(f"h2 >> text=Latent {latent}")
        used = heap(page)
        print(f"after {50_000 // 1_500} other latents", used)
        browser.close()
    return int(opened > OPENS_IN or float(used.split()[0]) * 1e6 > HEAP)


def heap(page: Page) -> str:
    """Returns what the page's JavaScript keeps, after garbage is collected."""
    used: Any = page.evaluate("() => { gc(); return performance.memory.usedJSHeapSize; }")
    return f"{used / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
