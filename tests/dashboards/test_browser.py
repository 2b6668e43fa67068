"""The dashboard in a browser: what is seen, found, opened and never run."""

import re
import shutil

import pytest
import torch

from tests.browser import Visits
from tests.dashboards import fake

pytestmark = pytest.mark.xdist_group("browser")
PAGE = fake.page()


@pytest.fixture
def opened(visits, folder):
    def open_at(address: str = "", **options):
        return visits.open(f"file://{folder}/index.html{address and '#'}{address}", **options)

    return open_at


@pytest.fixture(scope="module")
def any_page(browser, folder):
    """A page of which only functions are called."""
    visits = Visits(browser)
    yield visits.open(f"file://{folder}/index.html")
    visits.contexts[0].close()


def numbers(page) -> list[int]:
    """Returns the latents of the rows that are drawn, in the order of the list."""
    found = page.eval_on_selector_all(".row", "rows => rows.map(row => [parseInt(row.style.top), +row.dataset.latent])")
    return [latent for _, latent in sorted(found)]


def search(page, query: str, n: str) -> None:
    page.fill("#query", query)
    page.wait_for_selector(f"#list[data-query='{query}']")
    assert page.inner_text("#count") == n


def test_click_opens_a_latent_with_all_that_is_known(opened):
    page = opened()
    page.click("#row-5")
    page.wait_for_selector("text=Latent 5")
    assert page.url.endswith("#top_k-32/5") and page.get_attribute("#row-5", "aria-selected") == "true"
    shown = page.inner_text("#views")
    density, largest = PAGE.statistics.density[5].item(), PAGE.statistics.maximum[5].item()
    assert f"{density * 100:#.3g}%" in shown and f"{round(density * 200_000):,} of 200,000" in shown
    assert f"{largest:#.3g}" in shown and "where it is active" in shown
    logits = PAGE.effects.promoted_logits[5].tolist()
    values = page.eval_on_selector_all(".bars.hot .value", "all => all.map(one => parseFloat(one.textContent))")
    assert values == pytest.approx(logits, rel=6e-3)
    assert page.locator(".uplot canvas").count() == 2
    assert page.locator(".neighbors").count() == 2


def test_examples_are_in_order_and_all_can_be_asked_for(opened):
    page = opened("top_k-32/5")
    first = page.locator(".contexts details").first
    values = [float(text) for text in first.locator(".examples .value").all_inner_texts()]
    top = fake.contexts(5, PAGE.statistics.maximum[5].item()).top
    assert values == pytest.approx([float(one.activations[one.peak]) for one in top[:8]], rel=6e-3)
    first.locator(".more").click()
    assert first.locator(".examples li").count() == len(top)
    titles = page.locator(".contexts summary").all_inner_texts()
    assert titles[1].startswith("0 to 25%") and titles[-1] == "Where it is not active"
    n_tokens = first.locator(".token").count()
    first.locator(".whole").first.click()
    assert first.locator("li").first.locator(".token").count() == fake.WINDOW > n_tokens / len(top)


def test_color_and_tip_say_the_value_of_a_token(opened):
    page = opened("top_k-32/5")
    peak = page.locator(".token.peak").first
    assert peak.evaluate("one => one.style.getPropertyValue('--a')") == "1.000"
    background = "one => getComputedStyle(one).backgroundColor"
    assert peak.locator("span").evaluate(background) != "rgba(0, 0, 0, 0)"
    other = page.locator(".token", has_text="word").first
    text = other.text_content()
    # spaces before a word have no color: they may end a line
    assert text.startswith(" ") and other.locator("span").text_content() == text.lstrip()
    assert other.evaluate(background) == "rgba(0, 0, 0, 0)"
    peak.hover()
    value = f"{PAGE.statistics.maximum[5].item():#.4g}"
    assert page.inner_text("#tip").startswith("of") and page.inner_text("#tip").endswith(value)


def test_search_finds_tokens_explanations_and_numbers(opened):
    page = opened()
    search(page, "UNION", "1 of 100")
    assert numbers(page) == [6]
    search(page, "presidents speech", "1 of 100")
    assert numbers(page) == [2]
    page.select_option("#where", "tokens")
    page.wait_for_selector("text=No latent is like this.")
    page.select_option("#where", "all")
    search(page, "#42", "1 of 100")
    assert numbers(page) == [42]
    search(page, "onerror", "2 of 100")
    assert numbers(page) == [0, 1]  # a token, and an explanation
    search(page, "", "100")


def test_sort_and_filter_are_those_of_the_numbers(opened):
    page = opened()
    density, maximum = PAGE.statistics.density, PAGE.statistics.maximum
    page.select_option("#sort", "density")
    assert numbers(page)[:10] == density.argsort(descending=True)[:10].tolist()
    page.click("#direction")
    assert numbers(page)[0] == 3  # which is dead
    page.select_option("#sort", "score")
    assert numbers(page)[:2] == [1, 2]
    page.click("#filters")
    page.fill("[aria-label='least largest activation']", "5")
    page.press("[aria-label='least largest activation']", "Enter")
    page.fill("[aria-label='least density']", "1")
    page.press("[aria-label='least density']", "Enter")
    n = int(((maximum >= 5) & (density >= 0.01)).sum())
    page.locator("#count", has_text=re.compile(f"^{n} of 100$")).wait_for()


def test_keys_move_through_the_list(opened):
    page = opened()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=Latent 0")
    page.keyboard.press("j")
    page.wait_for_selector("text=Latent 1")
    page.keyboard.press("End")
    page.wait_for_selector("text=Latent 99")
    assert page.locator("#row-99").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("bold")
    page.wait_for_selector("#row-4", state="detached")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=Latent 7")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=How often latents are active")
    assert "/" not in page.url.split("#")[1]


def test_texts_of_strangers_are_shown_and_not_run(opened):
    for address in ("", "top_k-32/0", "top_k-32/1", "top_k-32/1+top_k-32/0"):
        page = opened(address)
        page.wait_for_timeout(150)
        assert page.title() == f"Latents {fake.CLOSING}" and page.locator("img").count() == 0
        assert fake.EVIL in page.inner_text("body")
    page.locator("a", has_text="99").first.hover()
    assert fake.EVIL in page.locator(".explanations").first.inner_text()


def test_what_cannot_be_seen_is_shown_by_signs(opened):
    page = opened("top_k-32/2")
    assert page.locator(".token.peak").first.inner_text() == "↵"
    page.locator(".token.peak").first.hover()
    assert page.inner_text("#tip").startswith("↵")
    assert page.locator("#row-4").inner_text().startswith("4\n·the")
    page.locator(".token", has_text="word").first.hover()
    assert page.inner_text("#tip").startswith("·word")


def test_address_opens_two_dictionaries_side_by_side(opened):
    page = opened("top_k-32/5+long/600")
    page.wait_for_selector("text=Latent 600")
    assert page.locator(".view").count() == 2
    page.locator(".view").nth(1).locator("h2").click()
    page.wait_for_selector("#row-600")  # the list is that of the other now
    page.locator(".view").nth(1).locator("[aria-label=Next]").click()
    page.wait_for_selector("text=Latent 601")
    assert page.url.endswith("#top_k-32/5+long/601")
    page.locator(".view").nth(0).locator(".close").click()
    page.wait_for_selector(".view:nth-child(2)", state="detached")
    assert page.url.endswith("#long/601")


def test_nearest_latent_of_another_dictionary_opens_beside(opened):
    page = opened("top_k-32/5")
    page.locator(".neighbors").nth(1).locator("a").click()
    page.wait_for_selector("text=Latent 94")
    assert page.locator(".view h2 small").all_inner_texts() == ["top_k-32", fake.EVIL]
    page.go_back()
    page.wait_for_selector("text=Latent 94", state="detached")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nosuch/5", "There is no dictionary nosuch here."),
        ("top_k-32/100", "There is no latent 100 here: top_k-32 has latents 0 to 99."),
        ("top_k-32/99999999", "There is no latent 99999999 here: top_k-32 has latents 0 to 99."),
        ("top_k-32/-1", "There is no latent -1 here: top_k-32 has latents 0 to 99."),
        ("top_k-32/<img src=x>", "There is no latent <img src=x> here: top_k-32 has latents 0 to 99."),
        ("%E0%A4%A", "There is no dictionary %E0%A4%A here."),
        ("+++", None),
    ],
)
def test_address_of_nothing_opens_the_overview_and_says_so(opened, address, said):
    page = opened(address)
    page.wait_for_selector("text=How often latents are active")
    assert page.locator("[role=alert]").all_inner_texts() == ([said] if said else [])
    page.evaluate("location.hash = 'top_k-32/5'")  # what is there takes its place
    page.wait_for_selector("text=Latent 5")
    assert page.locator("[role=alert]").count() == 0


def test_latent_that_is_not_there_is_said_beside_one_that_is(opened):
    page = opened("top_k-32/5+long/700")
    assert page.locator("[role=alert]").all_inner_texts() == ["There is no latent 700 here: long has latents 0 to 699."]
    assert page.locator(".view h2").all_inner_texts() == ["Latent 5top_k-32", "long"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("decimal(3.6)", "3.60"),
        ("decimal(0)", "0"),
        ("decimal(-0.5)", "-0.500"),
        ("decimal(100)", "100"),
        ("decimal(1234)", "1230"),
        ("decimal(12345)", "12300"),
        ("decimal(1e6)", "1.0e6"),
        ("decimal(2e-5)", "2.0e-5"),
        ("decimal(null)", "—"),
        ("percent(1)", "100%"),
        ("percent(0.02)", "2.00%"),
        ("[-5, -4, -1, 0].map((log) => plainPercent(10 ** log))", ["0.001%", "0.01%", "10%", "100%"]),
        ("ticks([0, 0.5, 1], 0.5)", ["0.0", "0.5", "1.0"]),
        ("ticks([0, 0.25, 0.5], 0.25)", ["0.00", "0.25", "0.50"]),
        ("ticks([0, 2, 4], 2)", ["0", "2", "4"]),
        ("ticks([0, 2.5, 5], 2.5)", ["0.0", "2.5", "5.0"]),
        ("ticks([-0.02, 0, 0.02], 0.02)", ["-0.02", "0.00", "0.02"]),
        ("ticks([0, 1e-5, 2e-5], 1e-5)", ["0", "1.0e-5", "2.0e-5"]),
        ("ticks([], 1)", []),
        ("short(2000)", "2k"),
        ("short(1500000)", "1.5M"),
    ],
)
def test_numbers_have_digits_that_tell_them_apart(any_page, call, text):
    assert any_page.evaluate(call) == text


def test_charts_and_map_follow_the_window_in_silence(opened):
    page = opened("top_k-32/5+long/5")
    # the console, which `visits` reads, would tell of a loop of resizing
    for width, height in ((1280, 800), (760, 500), (390, 800), (1600, 1000), (761, 600), (320, 500)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(60)
        assert page.evaluate("document.documentElement.scrollWidth") <= max(width, 320)
    for chart in page.locator(".uplot").all():
        assert chart.bounding_box()["width"] <= 320


def test_latent_on_the_map_opens_by_a_click(opened):
    page = opened()
    canvas = page.locator("canvas.map")
    canvas.scroll_into_view_if_needed()
    box, places = canvas.bounding_box(), PAGE.map
    low, high = places.min(0).values, places.max(0).values
    far = (torch.cdist(places, places) + 99 * torch.eye(100)).min(1).values.argmax().item()  # no other is near
    share = ((places[far] - low) / (high - low)).tolist()
    x, y = (10 + (box[side] - 20) * part for side, part in zip(("width", "height"), share, strict=True))
    canvas.click(position={"x": x, "y": y})
    page.wait_for_selector(f"text=Latent {far}")


def test_dark_and_light_pages_have_their_colors(opened):
    def brightness(page) -> float:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"\d+", color)[:3])) / 3

    assert brightness(opened("top_k-32/5")) > 200 > 60 > brightness(opened("top_k-32/5", dark=True))


@pytest.mark.parametrize("address", ["", "top_k-32/1", "top_k-32/1+long/5"])
def test_narrow_page_is_not_wider_than_the_screen(opened, address):
    page = opened(address, width=390)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#list").is_visible() == ("/" not in address)
    if address == "top_k-32/1":
        page.click(".back")
        page.wait_for_selector("#list", state="visible")


def test_only_rows_that_are_seen_are_drawn(opened):
    page = opened("long")
    page.wait_for_selector("#row-0")
    assert page.locator(".row").count() < 40
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.wait_for_selector("#row-699")
    assert page.locator(".row").count() < 40


def test_file_that_is_missing_is_said(visits, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "data" / "0" / "panels-0.js").unlink()
    page = visits.open(f"file://{copy}/index.html#top_k-32/5")
    page.wait_for_selector("text=The file data/0/panels-0.js is missing. Write the dashboard again.")


def test_dictionary_of_which_little_is_known_is_shown(opened):
    page = opened("long/3")
    assert "never active" in page.inner_text("#row-3")
    page = opened("long/5")
    assert page.locator(".card").count() == 1 and page.locator(".examples li").count() > 0
