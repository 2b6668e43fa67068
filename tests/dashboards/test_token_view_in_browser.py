"""Token views in a browser, which runs no script of theirs."""

import pytest

from dictionary_learning.interpretation import show_tokens
from tests.dashboards.fake import EVIL

pytestmark = pytest.mark.xdist_group("browser")


def test_series_are_switched_and_tips_shown_without_scripts(browser, tmp_path):
    view = show_tokens(["a", EVIL, "\n"], {"one": [1, 0, 0], "two": [0, 0, 3]}, tips=["x", "y", "z"], title="T")
    path = view.save(tmp_path / "view.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{path}")
    first, second = page.locator(".s0"), page.locator(".s1")
    assert first.is_visible() and not second.is_visible()
    page.locator("input[value='1']").check()
    assert second.is_visible() and not first.is_visible()
    second.locator(".t").nth(2).hover()
    assert second.locator(".tip").nth(2).inner_text() == "↵  3\nz"
    assert page.locator("img").count() == 0 and said == []
    context.close()
