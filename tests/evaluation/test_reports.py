"""Tests of the renderers of an evaluation report."""

import copy
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest

from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.evaluation.reports import RENDERERS, write_report
from dictionary_learning.evaluation.reports._contents import best_values, nothing_to_recover
from dictionary_learning.evaluation.reports._plots import cross_entropy_plot, scatter_plot
from dictionary_learning.evaluation.reports._svg import COLORS, looks

SITE, OTHER_SITE = "model.layers.3:out", "model.layers.3.mlp:out"
CE_METRICS = ("ce_reconstructed", "ce_increase", "ce_recovered_zero", "ce_recovered_mean", "kl")


def dictionary(name: str, site: str, k: int, fvu: float, ce_increase: float) -> dict[str, Any]:
    return {
        "name": name,
        "site": site,
        "class": "AutoEncoder",
        "activation_dim": 32,
        "dict_size": 128,
        "k": k,
        "config": {"lr": 3e-4, "betas": [0.9, 0.999], "warmup_steps": None},
        "metrics": {
            "fvu": fvu,
            "frac_variance_explained": 1 - fvu,
            "mse": 40 * fvu,
            "l0": float(k),
            "cossim": 0.9,
            "frac_alive": 0.9375,
            "n_alive": 120,
            "n_tokens": 1000,
            "ce_reconstructed": 3.0 + ce_increase,
            "ce_increase": ce_increase,
            "ce_recovered_zero": 1 - ce_increase / 8,
            "ce_recovered_mean": 1 - ce_increase / 6,
            "kl": ce_increase,
        },
        "density": {"log10_edges": [-3.0, -2.0, -1.0, 0.0], "counts": [20, 80, 20], "n_never_fired": 8},
        "history": [{"step": i, "tokens": 100 * i, "loss": 50 / (i + 1), "fvu": 1 / (i + 1)} for i in range(5)],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "title": "Test report",
        "model": {"name": "tiny", "revision": None, "dtype": "float32"},
        "data": {
            "source": "text",
            "n_tokens_read": 1100,
            "n_tokens_scored": 1000,
            "ctx_len": 16,
            "filter": "padding, the token id 1",
        },
        "ce_clean": 3.0,
        "ablation": {
            SITE: {"ce_zero": 11.0, "ce_mean": 9.0, "kl_zero": 8.5, "kl_mean": 6.5},
            OTHER_SITE: {"ce_zero": 3.5, "ce_mean": 3.25, "kl_zero": 0.5, "kl_mean": 0.3},
        },
        "dictionaries": [
            dictionary("small", SITE, 8, 0.3125, 0.25),
            dictionary("large", SITE, 16, 0.1875, 0.125),
            dictionary("other", OTHER_SITE, 8, 0.4375, 0.0625),
        ],
        "versions": {"torch": "2.13.0"},
        "seconds": {"train": 75.0, "evaluate": 1.5},
    }


class Page(HTMLParser):
    """What a page loads, its ids, the tags that are open at the end, and the cells of its tables."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.best: list[str] = []
        self._in_best = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_best = False if tag == "td" else self._in_best

    def handle_data(self, data: str) -> None:
        if self._in_best and data.strip():
            self.best.append(data)

    def _take(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append(tag)
        self.loads += [value for key in ("src", "href", "srcset", "data", "action") if (value := attributes.get(key))]
        self.ids += [value] if (value := attributes.get("id")) else []
        self.references += re.findall(r"url\(#(.*?)\)", attributes.get("clip-path") or "")
        self._in_best = self._in_best or (tag == "td" and attributes.get("class") == "best")


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_text_holds_each_dictionary_and_its_figures(report: dict[str, Any], name: str) -> None:
    text = RENDERERS[name](report)
    for d in report["dictionaries"]:
        for shown in (d["name"], d["site"], f"{d['metrics']['fvu']:.4f}", f"{d['metrics']['ce_increase']:+.4f}"):
            assert shown in text
    for shown in (
        "Test report",
        "3 dictionaries at 2 sites of tiny (float32)",
        "1,000 tokens",
        "11.0000",
        "93.75%",
        "torch",
    ):
        assert shown in text


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_text_says_how_dictionaries_were_trained(report: dict[str, Any], name: str) -> None:
    for d in report["dictionaries"]:
        d["config"] |= {"k": d["k"], "lr": 0.000731, "seed": 4711}
        d["history"][-1] |= {"step": 7_003, "tokens": 14_342_144}
    text = RENDERERS[name](report)
    for shown in ("7,003", "14,342,144", "0.000731", "4711"):
        assert text.count(shown) >= 3
    for d in report["dictionaries"]:
        del d["config"], d["history"]
    assert "## Training" not in RENDERERS[name](report) and "trained steps" not in RENDERERS[name](report)


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_text_says_what_is_left_out(report: dict[str, Any], name: str) -> None:
    assert "Excluded from training, splicing and metrics alike: padding, the token id 1." in RENDERERS[name](report)


def test_json_round_trips(report: dict[str, Any]) -> None:
    assert json.loads(RENDERERS["json"](report)) == report


def test_json_is_strict_about_values_that_are_not_finite(report: dict[str, Any]) -> None:
    report["ce_clean"] = float("nan")
    report["dictionaries"][0]["metrics"].update(kl=float("inf"), fvu=0.1 + 0.2)
    read = json.loads(RENDERERS["json"](report), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["ce_clean"] is None
    assert read["dictionaries"][0]["metrics"]["kl"] is None
    assert read["dictionaries"][0]["metrics"]["fvu"] == 0.1 + 0.2


def test_html_loads_nothing(report: dict[str, Any]) -> None:
    html = RENDERERS["html"](report)
    page = Page(html)
    assert all(target.startswith("#") for target in page.loads)
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_html_is_whole_and_its_ids_are_unique(report: dict[str, Any]) -> None:
    page = Page(RENDERERS["html"](report))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("figure") == 6  # scatter, density, two curves, two sites
    assert {target.removeprefix("#") for target in page.loads} | set(page.references) <= set(page.ids)


def test_html_escapes_what_the_report_says(report: dict[str, Any]) -> None:
    bad = "<script>alert(1)</script>"
    before = Page(RENDERERS["html"](report)).tags.count("script")
    report["title"] = report["data"]["filter"] = report["model"]["name"] = report["versions"]["<script>"] = bad
    for d in report["dictionaries"]:
        d["name"] = d["class"] = d["config"][bad] = d["config"]["kind"] = d["metrics"][bad] = bad
        d["site"] = bad
    report["ablation"] = {bad: report["ablation"][SITE]}
    html = RENDERERS["html"](report)
    assert Page(html).tags.count("script") == before
    assert bad not in html


def test_markdown_keeps_its_table_whatever_the_names(report: dict[str, Any]) -> None:
    report["dictionaries"][0]["name"] = "a|b`c\nscript"
    lines = RENDERERS["markdown"](report).splitlines()
    row, *_ = [line for line in lines if "a\\|b'c script" in line]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|") and SITE in line]
    assert len(set(bars[:2])) == 1
    assert "`a\\|b'c script`" in row


def without_model(report: dict[str, Any]) -> None:
    for key in ("ce_clean", "ablation", "model", "seconds", "versions"):
        del report[key]
    for d in report["dictionaries"]:
        for key in CE_METRICS:
            del d["metrics"][key]


def without_history(report: dict[str, Any]) -> None:
    for d in report["dictionaries"]:
        d["history"] = []
        del d["config"]


def one_dictionary(report: dict[str, Any]) -> None:
    del report["dictionaries"][1:]


def no_dictionary(report: dict[str, Any]) -> None:
    report["dictionaries"] = []


def many_dictionaries(report: dict[str, Any]) -> None:
    long = "language_model." * 8 + "self_attention.output_projection:out"
    report["dictionaries"] = [
        dictionary(f"${i}_" + "long" * i, long, 2**i, 0.5 - 0.03 * i, 0.1 - 0.01 * i) for i in range(12)
    ]


def not_finite(report: dict[str, Any]) -> None:
    for value, d in zip((float("nan"), None, float("inf")), report["dictionaries"], strict=True):
        d["metrics"] = dict.fromkeys(d["metrics"], value)
        d["k"] = None
        d["history"] = [{"step": 0, "tokens": 0, "loss": value, "fvu": value}]
        d["density"]["n_never_fired"] = 128
        d["density"]["counts"] = [0, 0, 0]
    report["ce_clean"] = float("nan")
    report["ablation"][SITE] = dict.fromkeys(report["ablation"][SITE])


def no_loss_of_fidelity(report: dict[str, Any]) -> None:
    for d, increase in zip(report["dictionaries"], (0.0, -0.01, 1e-9), strict=True):
        d["metrics"].update(ce_reconstructed=3.0 + increase, ce_increase=increase)
    report["ablation"] = {}


def unlike_letters(report: dict[str, Any]) -> None:
    report["dictionaries"][0]["name"] = "\u8fa3\u6912 $x^2"


@pytest.mark.parametrize("name", ["json", "markdown", "html"])
@pytest.mark.parametrize(
    "change",
    [
        without_model,
        without_history,
        one_dictionary,
        no_dictionary,
        many_dictionaries,
        not_finite,
        no_loss_of_fidelity,
        unlike_letters,
    ],
)
def test_unusual_reports_render(report: dict[str, Any], change: Any, name: str) -> None:
    change(report)
    text = RENDERERS[name](report)
    assert all(d["name"] in text for d in report["dictionaries"])
    if name != "json":
        assert not re.search(r"\b(nan|inf|None)\b", text)


def test_dash_stands_for_a_value_that_is_missing(report: dict[str, Any]) -> None:
    report["dictionaries"][0]["metrics"]["fvu"] = float("nan")
    del report["dictionaries"][0]["metrics"]["kl"]
    row, _ = [line for line in RENDERERS["markdown"](report).splitlines() if "`small`" in line]
    assert row.count("\u2014") == 2


@pytest.mark.parametrize("name", ["json", "markdown", "html"])
def test_rendering_changes_nothing_and_repeats_itself(report: dict[str, Any], name: str) -> None:
    before, settings = copy.deepcopy(report), dict(matplotlib.rcParams)
    first = RENDERERS[name](report)
    assert RENDERERS[name](report) == first
    assert report == before
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_error_of_zero_is_left_out(report: dict[str, Any], name: str) -> None:
    bar = {"low": 8.0, "high": 8.0}
    report["dictionaries"][0]["errors"] = {"l0": {**bar, "standard_error": 0.0}, "fvu": {**bar, "standard_error": 0.02}}
    text = RENDERERS[name](report)
    assert "\u00b1 0.0200" in text and not re.search("\u00b1 0(?![.])", text)


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_text_says_where_ablation_costs_nothing(report: dict[str, Any], name: str) -> None:
    assert nothing_to_recover(report) == ""
    report["ablation"][SITE] = {"ce_zero": 2.5, "ce_mean": 3.0, "ce_resample": 3.5}
    said = f"Nothing to recover: zero and mean ablation at {SITE} does not raise the cross-entropy."
    assert said in RENDERERS[name](report)


def test_plot_of_cross_entropies_has_every_ablation(report: dict[str, Any]) -> None:
    report["ablation"][SITE]["ce_resample"] = 9.5
    svg = cross_entropy_plot(SITE, report, looks(report["dictionaries"]))
    assert re.findall(r">(\w+) ablation<", svg) == ["mean", "resample", "zero"] and "9.5000  (+6.5000)" in svg


def test_bars_in_plots_are_a_standard_error_to_each_side(report: dict[str, Any]) -> None:
    for d in report["dictionaries"]:  # FVU 0.3125, 0.1875 and 0.4375
        d["errors"] = {"fvu": {"standard_error": 0.0625}, "l0": {"standard_error": 0.0}}
    svg = scatter_plot(report["dictionaries"], looks(report["dictionaries"]))
    bars = [
        tuple(map(float, found))
        for found in re.findall(r'd="M (\S+) (\S+)  L (\S+) (\S+)  " [^>]*stroke: var\(--s', svg)
    ]
    assert len(bars) == 3 and all(x == same for x, _, same, _ in bars)
    (small, large, other) = [(low, high) for _, low, _, high in bars]
    assert small[0] == large[1] and small[1] == other[0]  # 0.25, and 0.375


def test_best_value_is_that_of_its_site(report: dict[str, Any]) -> None:
    report["dictionaries"].append(dictionary("tied", OTHER_SITE, 8, 0.4375, 0.03125))
    report["dictionaries"][1]["metrics"]["l0"] = 9.0  # others with as many latents are compared
    best = best_values(report["dictionaries"])
    assert (1, "fvu") in best
    assert (1, "frac_variance_explained") in best
    assert not {(0, "fvu"), (2, "fvu"), (3, "fvu")} & best  # of site two, both are the same
    assert (3, "kl") in best
    assert not any(key == "l0" for _, key in best)


def test_best_values_are_highlighted(report: dict[str, Any]) -> None:
    report["dictionaries"][1]["metrics"]["l0"] = 9.0
    shown = Page(RENDERERS["html"](report)).best
    assert shown == ["0.1875", "0.8125", "3.1250", "+0.1250", "0.9844", "0.9792", "0.1250"]
    assert re.findall(r"\*\*([+\d.]+)\*\*", RENDERERS["markdown"](report)) == shown


def test_looks_of_twelve_dictionaries_differ() -> None:
    found = looks([{"site": "a"}] * 12)
    assert len({(look.color, look.dash) for look in found}) == 12
    assert len({look.marker for look in found}) == 1


def test_plots_take_their_colors_from_the_page(report: dict[str, Any]) -> None:
    html = RENDERERS["html"](report)
    figures = html[html.index("<figure") :]
    bare = re.findall(r"(?<!, )#[0-9a-f]{6}\b", figures)
    assert bare == []
    assert f"var(--series-0, {COLORS[0]})" in figures


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_text_says_how_many_tokens_were_not_finite(report: dict[str, Any], name: str) -> None:
    report["data"]["n_tokens_nonfinite"] = 1234
    assert "1,234 tokens with a NaN or an infinity" in RENDERERS[name](report)


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\uffff", "\ud800"])
def test_characters_that_no_file_can_hold_are_replaced(report: dict[str, Any], tmp_path: Any, character: str) -> None:
    report["dictionaries"][0]["name"] = report["data"]["source"] = f"a{character}b"
    for path in write_report(report, tmp_path).values():
        text = path.read_text(encoding="utf-8")
        assert "a\ufffdb" in text and character not in text


@pytest.mark.parametrize("bad", [None, [], "report"])
def test_what_is_no_report_is_refused(bad: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="Got report=.* it must be a mapping"):
        write_report(bad, tmp_path)


def test_files_are_written(report: dict[str, Any], tmp_path: Any) -> None:
    written = write_report(report, tmp_path / "new" / "folder")
    assert {name: path.name for name, path in written.items()} == {
        "json": "report.json",
        "markdown": "report.md",
        "html": "report.html",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    for name, path in written.items():
        assert path.read_text(encoding="utf-8") == RENDERERS[name](report)


def test_unknown_format_is_named_before_anything_is_written(report: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown report format 'htm'\. Did you mean 'html'"):
        write_report(report, tmp_path / "new", ("json", "htm"))
    assert not (tmp_path / "new").exists()


def test_markdown_holds_no_tag_image_or_link_of_a_name(report: dict[str, Any]) -> None:
    name = "a <script>alert(1)</script> <img src=x onerror=alert(2)> `b` | *c* [d](javascript:e) &lt;"
    report["dictionaries"][0]["name"] = report["title"] = name
    report["seconds"] = {name: 1.0}
    text = RENDERERS["markdown"](report)
    assert not re.findall(r"<(?!/?code>|x, x_hat>)", text), text
    assert not re.findall(r"(?<!\\)\](?=\()", text)
    row, *_ = [line for line in text.splitlines() if "<code>" in line]
    (shown,) = re.findall(r"<code>(.*?)</code>", row)
    assert html.unescape(shown) == name and not set("<>|*[]`") & set(shown)
    assert row.count("|") == next(line for line in text.splitlines() if line.startswith("| ")).count("|")
