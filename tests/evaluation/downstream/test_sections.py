"""The section of a report: typed, through JSON and back, and in every form of report."""

import dataclasses
import json
import re

import pytest

from dictionary_learning.errors import DataError
from dictionary_learning.evaluation import ErrorBar, Report, read_report
from dictionary_learning.evaluation._records import DataReport
from dictionary_learning.evaluation.downstream import (
    AblationScoresReport,
    AbsorptionEntry,
    AbsorptionReport,
    ContextReport,
    DisentanglingReport,
    DownstreamReport,
    LetterReport,
    ProbingReport,
    Scored,
    TaskReport,
)
from dictionary_learning.evaluation.reports import write_report
from dictionary_learning.evaluation.reports._downstream import downstream_tables

BAR = ErrorBar(0.01, 0.7, 0.74)
NAME = "<b>d|`"


def scored(**changes):
    metrics = {"auc": 0.72, "tpp": 0.1, "scr": 0.2, "score": 0.6, "cause": 0.7, "isolation": 0.5, "kept": 0.3}
    one = Scored(name=NAME, role="dictionary", k=1, metrics=metrics, errors={"auc": BAR}, latents={"yes": [3]})
    return dataclasses.replace(one, **changes)


def section() -> DownstreamReport:
    task = TaskReport(
        name="t<1>", classes=["a", "b"], n_train=9, n_test=3, n_cut=1,
        scores=[scored(), scored(name="all activations", role="dense", k=None, latents=None)],
    )  # fmt: skip
    letter = LetterReport(letter="a", n_words=4, probe_f1=0.9, latents=[1], k_sparse_f1=0.8, rate=0.25, fraction=0.3)
    entry = AbsorptionEntry(name=NAME, role="dictionary", metrics={"rate": 0.25, "fraction": 0.3}, letters=[letter])
    ablation = {"name": "t", "scores": [scored()], "probes": {"a": 0.9}, "warning": "Careful.", "settings": {"seed": 0}}
    return DownstreamReport(
        probing=ProbingReport(tasks=[task, task], means=[scored()], settings={"seed": 0}),
        absorption=AbsorptionReport(n_words=20, n_letters=1, entries=[entry], settings={}),
        perturbation=AblationScoresReport(kind="tpp", **ablation),
        removal=AblationScoresReport(kind="scr", **ablation),
        disentangling=DisentanglingReport(attributes=["x", "y"], n_entities=9, scores=[scored()], settings={}),
        context=ContextReport(n_tokens=9, windows=[1], scores=[scored()], settings={}),
    )


def report(part) -> Report:
    data = DataReport(source="t", n_tokens_read=1, n_tokens_scored=1)
    return Report(model={"name": "m"}, data=data, dictionaries=[], downstream=part)


def test_a_section_survives_json(tmp_path):
    write_report(report(section()), tmp_path)
    assert read_report(tmp_path).downstream == section()
    assert type(read_report(tmp_path).downstream.probing.tasks[0].scores[0].errors["auc"]) is ErrorBar
    write_report({"model": {"name": "m"}, "downstream": section()}, tmp_path)  # without an evaluation
    assert read_report(tmp_path).downstream == section()
    assert read_report(tmp_path).dictionaries == []


def test_what_is_not_finite_is_nan_again(tmp_path):
    write_report(
        report(
            DownstreamReport(
                context=ContextReport(
                    n_tokens=9, windows=[1], scores=[scored(metrics={"kept": float("nan")})], settings={}
                )
            )
        ),
        tmp_path,
    )
    found = read_report(tmp_path).downstream.context.scores[0].metrics["kept"]
    assert found != found


def test_a_report_without_a_section_has_none(tmp_path):
    write_report(report(None), tmp_path)
    assert read_report(tmp_path).downstream is None
    assert "downstream" not in json.loads((tmp_path / "report.json").read_text())


def test_pages_have_every_part_and_escape_names(tmp_path):
    write_report(report(section()), tmp_path)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for title in (
        "Probing: mean of 2 tasks",
        "Absorption",
        "Targeted probe perturbation: t",
        "Spurious correlation removal: t",
        "Disentangling: cause",
        "Sensitivity to context",
    ):
        assert f"<h2>{title}</h2>" in html and f"## {title}\n" in markdown
    assert "<b>d" not in html and "&lt;b&gt;d" in html and "t&lt;1&gt;" in html
    assert "<b>d" not in markdown
    assert "Careful." in html and "Careful." in markdown
    assert re.search(r"0\.7200 ± 0\.0100", markdown)


def test_an_error_of_exactly_zero_is_shown_and_one_that_is_not_known_is_not():
    exact = {"standard_error": 0.0, "low": 1.0, "high": 1.0}
    scores = [
        {"name": "a", "role": "dictionary", "k": 1, "metrics": {"auc": 1.0}, "errors": {"auc": exact}},
        {"name": "b", "role": "majority", "k": 1, "metrics": {"auc": 0.5}, "errors": None},
    ]
    (table,) = downstream_tables({"downstream": {"probing": {"tasks": [{"name": "t", "scores": scores}]}}})
    assert ["".join(cells[0][:2]) for _, _, cells in table.rows] == ["1.0000 \u00b1 0.0000", "0.5000"]


def test_a_section_of_a_later_version_is_refused(tmp_path):
    write_report(report(section()), tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    document["downstream"]["schema_version"] = 9
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="schema_version=9"):
        read_report(tmp_path)
    document["downstream"] = {"probing": {"tasks": 3}}
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="no report"):
        read_report(tmp_path)
