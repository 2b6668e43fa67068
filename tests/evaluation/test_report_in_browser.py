"""The report's page in a real browser."""

from dataclasses import replace

import pytest

from dictionary_learning import Candidate, EvaluationConfig, evaluate_dictionaries, load_model, write_report
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.evaluation import ErrorBar
from dictionary_learning.evaluation._measured import ABLATIONS
from tests import tiny

pytestmark = pytest.mark.xdist_group("browser")
SITE = "model.layers.1"
CELLS = """() => [...document.querySelectorAll("#dictionaries td")].map(cell => {
    const figure = cell.querySelector("span"), style = getComputedStyle(figure ?? cell);
    return {best: cell.classList.contains("best"), size: style.fontSize, shade: style.backgroundColor};
})"""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """A report with error bars, of two dictionaries of a site."""
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    folder = tmp_path_factory.mktemp("report")
    candidates = [Candidate(f"top_k-{k}", AutoEncoderTopK(tiny.DIM, 64, k), SITE) for k in (8, 10)]
    config = EvaluationConfig(n_tokens=600, n_fidelity_tokens=300, ctx_len=16, n_resamples=50)
    report = evaluate_dictionaries(model, candidates, tiny.documents(40), config)
    return write_report(replace(report, dictionaries=[full(one) for one in report.dictionaries]), folder)["html"]


def full(entry):
    """Returns a dictionary with a figure in every column of the table, as a large model has them."""
    recovered = [f"ce_recovered_{kind}" for kind in ABLATIONS]
    metrics = {**entry.metrics, **dict.fromkeys(recovered, 0.9876)}
    errors = {**entry.errors, **dict.fromkeys(recovered, ErrorBar(0.0123, 0.9, 1.0))}
    return replace(entry, name=f"{entry.name} @ layers.15.mlp", dict_size=131_072, metrics=metrics, errors=errors)


def test_the_best_figure_is_shaded_and_no_smaller_than_others(visits, page_path):
    cells = visits.open(page_path.as_uri(), ready="#dictionaries").evaluate(CELLS)
    best, others = [c for c in cells if c["best"]], [c for c in cells if not c["best"]]
    assert best and others
    assert {c["size"] for c in best} == {c["size"] for c in others}
    assert all(c["shade"] != "rgba(0, 0, 0, 0)" for c in best) and all(c["shade"] == "rgba(0, 0, 0, 0)" for c in others)


@pytest.mark.parametrize("width", [390, 1280])
def test_what_is_said_of_arrows_holds_at_every_width(visits, page_path, width):
    page = visits.open(page_path.as_uri(), width=width, ready="#dictionaries")
    assert page.get_by_text("Arrows show which way is better").is_visible()
    drawn = page.evaluate("""() => {
        const shown = [...document.querySelectorAll("#dictionaries thead th")].map(head => head.innerText);
        const labels = [...document.querySelectorAll("#dictionaries td")].map(td => getComputedStyle(td, "::before").content);
        return [...shown, ...labels].filter(text => /[\u2191\u2193]/.test(text));
    }""")
    assert any("\u2191" in text for text in drawn) and any("\u2193" in text for text in drawn)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_asks_for_nothing(visits, page_path, width, dark):
    page = visits.open(page_path.as_uri(), width=width, dark=dark, ready="#dictionaries")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tables = "[...document.querySelectorAll('.scroll')].filter(table => table.scrollWidth > table.clientWidth).length"
    assert page.evaluate(tables) == 0  # no column is cut
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shade[4:-1].split(","))) < 200) == dark
