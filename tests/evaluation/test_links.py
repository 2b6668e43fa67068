"""Links from a report to pages about the same dictionaries."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from dictionary_learning import Candidate, EvaluationConfig, evaluate_dictionaries, load_model, write_report
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation import merge_reports, read_report
from dictionary_learning.evaluation.reports import add_link
from tests import tiny


class Links(HTMLParser):
    """The addresses and texts of a page's links."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[list[str]] = []
        self.is_inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.is_inside = tag == "a"
        if tag == "a":
            self.found.append([dict(attributes)["href"], ""])

    def handle_data(self, data):
        if self.is_inside:
            self.found[-1][1] += data

    def handle_endtag(self, tag):
        self.is_inside = False


@pytest.fixture(scope="module")
def evaluated():
    """A report with its sums."""
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    size = EvaluationConfig(n_tokens=128, n_fidelity_tokens=64, ctx_len=16)
    return evaluate_dictionaries(
        model, [Candidate("a", AutoEncoderTopK(tiny.DIM, 64, 4), "model.layers.1")], tiny.documents(20), size
    )


@pytest.fixture
def folder(evaluated, tmp_path):
    write_report(evaluated, tmp_path / "run")
    return tmp_path / "run"


def shown(folder) -> list[list[str]]:
    return Links((folder / "report.html").read_text()).found


def test_report_has_no_link_until_one_is_added(folder):
    page = folder / "latents" / "index.html"
    assert shown(folder) == [] and "](" not in (folder / "report.md").read_text()
    add_link(folder, "Latents", page)
    assert shown(folder) == [["./latents/index.html", "Latents"]]
    assert "[Latents](./latents/index.html)" in (folder / "report.md").read_text().splitlines()
    add_link(folder, "Latents", page)  # again, and another
    add_link(folder, "Elsewhere", folder.parent / "other" / "index.html")
    assert shown(folder) == [["./latents/index.html", "Latents"], ["./../other/index.html", "Elsewhere"]]


def test_nothing_else_of_the_report_changes(folder, evaluated):
    before = json.loads((folder / "report.json").read_text())
    sums = (folder / "report.safetensors").read_bytes()
    (folder / "report.md").unlink()  # a format that was not asked for
    add_link(folder, "Latents", folder / "index.html")
    after = json.loads((folder / "report.json").read_text())
    assert after.pop("links") == {"Latents": "index.html"} and before.pop("links", None) is None
    assert after == before and (folder / "report.safetensors").read_bytes() == sums
    assert not (folder / "report.md").exists()
    assert read_report(folder).measured is not None


def test_links_stay_with_their_report(folder, evaluated):
    add_link(folder, "Latents", folder / "index.html")
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    size = EvaluationConfig(n_tokens=128, n_fidelity_tokens=64, ctx_len=16)
    candidates = [Candidate("a", AutoEncoderTopK(tiny.DIM, 64, 4), "model.layers.1")]
    other = evaluate_dictionaries(model, candidates, tiny.documents(20, seed=1), size)
    assert merge_reports([read_report(folder), other]).links is None


@pytest.mark.parametrize("name", ["a b", "50% #1?x", "é你", "a'\"<b>", "(x)", "..."])
def test_address_is_that_of_the_file_whatever_its_name(folder, name):
    page = folder / name / "index.html"
    add_link(folder, name, page)
    ((address, text),) = shown(folder)
    assert text == name and (folder / unquote(address)).resolve() == page.resolve()
    assert re.fullmatch(r"[\w./%~-]+", address, re.ASCII)
    (line,) = [line for line in (folder / "report.md").read_text().splitlines() if "](" in line]
    assert line.endswith(f"]({address})")


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "http://evil.example", "//evil.example", "data:text/html,x", "\n) [x](http://e"]
)
def test_links_of_a_stranger_lead_to_paths_beside_the_report(folder, address):
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "links": {"<b>x](http://evil.example) [y": address}}))
    add_link(folder, "Latents", folder / "index.html")
    first, second = shown(folder)
    assert first[0].startswith("./") and ":" not in first[0] and second[0] == "./index.html"
    assert first[1] == "<b>x](http://evil.example) [y"
    text = (folder / "report.md").read_text()
    # brackets that Markdown would read are escaped
    assert "<b>" not in text and re.findall(r"(?<!\\)\]\((.*?)\)", text) == [first[0], second[0]]


@pytest.mark.parametrize("links", [5, ["a"], "text", {"a": 5}])
def test_what_is_no_link_is_a_damaged_report(folder, links):
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "links": links}))
    with pytest.raises(DataError, match="is no report"):
        read_report(folder)
    with pytest.raises(DataError):
        add_link(folder, "Latents", folder / "index.html")


def test_without_a_report_there_is_nothing_to_link_from(tmp_path):
    with pytest.raises(DataError, match=r"report\.json"):
        add_link(tmp_path, "Latents", tmp_path / "index.html")
