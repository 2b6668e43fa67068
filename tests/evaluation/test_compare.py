"""Differences are paired, counted together, and refused between texts that differ."""

import csv
import dataclasses
import io
import json

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Candidate, EvaluationConfig, evaluate_dictionaries, load_model
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation import compare_reports, read_report
from dictionary_learning.evaluation._bootstrap import document_weights
from dictionary_learning.evaluation.reports import COMPARISONS, write_report
from tests import tiny

SITE, OTHER = "model.layers.1:out", "model.layers.2:out"
CONFIG = EvaluationConfig(n_tokens=10**6, n_fidelity_tokens=320, ctx_len=16, batch_size=4, n_resamples=50)
TEXT = tiny.documents(40, seed=7)


def report(*ks: int, text=TEXT, site: str = SITE, **changes):
    candidates = []
    for k in ks:
        torch.manual_seed(0)
        candidates.append(Candidate(f"top_k-{k}", AutoEncoderTopK(tiny.DIM, 64, k), site))
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    return evaluate_dictionaries(model, candidates, text, CONFIG.replace(**changes))


@pytest.fixture(scope="module")
def one():
    return report(4)


@pytest.fixture(scope="module")
def two():
    return report(8)


def test_two_reports_and_one_of_both_give_the_same_differences(one, two):
    apart, at_once = compare_reports([one, two]), compare_reports([report(4, 8)])
    for mine, theirs in zip(apart.differences, at_once.differences, strict=True):
        assert (mine.name, mine.metric, mine.is_real) == (theirs.name, theirs.metric, theirs.is_real)
        assert mine.difference == pytest.approx(theirs.difference, rel=1e-4, abs=1e-6)


def test_another_l0_is_said_in_every_form(one, two):
    """More latents reconstruct better, with any method."""
    found = compare_reports([one, two])
    assert any("'top_k-8' has L0 8.0 and 'top_k-4' 4.0" in note for note in found.notes)
    for form in ("text",):
        assert "Compare at a similar L0" in " ".join(COMPARISONS[form](found).split())
    same = compare_reports([one, one])
    assert not any("L0" in note for note in same.notes)


def test_the_error_is_that_of_the_difference_on_the_same_documents(one, two):
    (fvu,) = [d for d in compare_reports([one, two]).differences if d.metric == "fvu"]
    assert fvu.difference == pytest.approx(two.dictionaries[0].metrics["fvu"] - one.dictionaries[0].metrics["fvu"])
    weights = document_weights(len(one.measured.documents), 2000, 0)
    spread = (two.measured.figures(0, weights)["fvu"] - one.measured.figures(0, weights)["fvu"]).std()
    assert fvu.error.standard_error == pytest.approx(float(spread), rel=0.02)  # the correction for few documents
    apart = (
        one.dictionaries[0].errors["fvu"].standard_error ** 2 + two.dictionaries[0].errors["fvu"].standard_error ** 2
    ) ** 0.5
    assert fvu.error.standard_error < apart
    assert fvu.is_real and fvu.excludes_zero and fvu.p_adjusted >= fvu.p_value


def test_a_dictionary_does_not_differ_from_itself(one):
    found = compare_reports([one, one])
    assert found.differences[0].name == "top_k-4 #2"
    assert not any(d.is_real or d.excludes_zero or d.difference for d in found.differences)


def test_noise_is_not_real():
    """The same figures in expectation, so a difference is called real about as often as is promised."""
    from dictionary_learning.evaluation._compare import _adjusted, _differences

    n_found = 0
    for trial in range(60):
        torch.manual_seed(trial)
        noise = torch.randn(10, 60).double()
        weights = document_weights(60, 300, trial)
        values = {f"m{i}": (float(row.mean()), weights @ row / 60) for i, row in enumerate(noise)}
        zero = {name: (0.0, torch.zeros(300).double()) for name in values}
        n_found += any(d.is_real for d in _adjusted(_differences("a", "b", values, zero, 60)))
    assert n_found <= 7  # 5 % of 60, and two standard errors


@pytest.mark.parametrize("n_documents", [2, 40])
def test_what_no_document_has_by_itself_is_called_real_by_no_two_documents(n_documents):
    found = compare_reports([report(4, 8, text=TEXT[:n_documents])])
    compared = {d.metric for d in found.differences}
    assert {"l0", "fvu"} <= compared
    told = any("frac_alive is not compared" in note for note in found.notes)
    assert told == ("frac_alive" not in compared)
    if n_documents == 2:
        assert told
    # none is certain but by construction, as the k of TopK is
    assert all(d.p_value > 0 for d in found.differences if d.metric != "l0")


def test_an_error_of_zero_of_a_count_is_no_certainty():
    from dictionary_learning.evaluation._compare import _differences

    same = torch.full((300,), 0.4).double()
    mine, theirs = {"frac_alive": (0.5, same + 0.1)}, {"frac_alive": (0.4, same)}
    assert not _differences("a", "b", mine, theirs, 60)


def test_the_first_of_each_site_is_the_reference():
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    named = {"a": SITE, "b": OTHER, "c": SITE, "d": OTHER}
    candidates = [Candidate(name, AutoEncoderTopK(tiny.DIM, 64, 4), site) for name, site in named.items()]
    config = CONFIG.replace(n_fidelity_tokens=0)
    whole = evaluate_dictionaries(model, candidates, TEXT, config)
    found = compare_reports([whole])
    assert {(d.name, d.reference) for d in found.differences} == {("c", "a"), ("d", "b")}
    alone = compare_reports([whole_of(whole, 0, 2), whole_of(whole, 1, 2)])
    assert any("different sites" in note for note in alone.notes)


def whole_of(report, number: int, n: int):
    """Returns a report of one of the first n dictionaries."""
    facts = report.measured.facts
    kept = {key.replace(f"dictionary/{number}/", "dictionary/0/"): part for key, part in report.measured.parts.items()
            if not key.startswith("dictionary/") or key.startswith(f"dictionary/{number}/")}  # fmt: skip
    small = dataclasses.replace(
        facts, names=facts.names[number : number + 1], variances=facts.variances[number : number + 1],
        writes=facts.writes[number : number + 1],
    )  # fmt: skip
    measured = dataclasses.replace(report.measured, facts=small, parts=kept)
    return dataclasses.replace(report, dictionaries=[report.dictionaries[number]], measured=measured)


def test_other_texts_filters_and_models_are_refused(one):
    with pytest.raises(DataError, match="differ in .*tokens"):
        compare_reports([one, report(8, text=TEXT[:30])])
    with pytest.raises(DataError, match="dictionary-learning evaluate A B$"):
        compare_reports([one, report(8, n_fidelity_tokens=64)])
    with pytest.raises(DataError, match="number of predictions: .* and "):
        compare_reports([one, report(8, n_fidelity_tokens=64)])
    with pytest.raises(DataError, match="differ in model"):
        compare_reports([one, dataclasses.replace(one, model={"name": "b"})])
    with pytest.raises(ConfigError, match="Evaluate the dictionaries again"):
        compare_reports([one, dataclasses.replace(one, measured=None)])
    with pytest.raises(ConfigError, match="Give at least two"):
        compare_reports([one])
    with pytest.raises(DataError, match="has 1 document"):
        compare_reports([report(4, 8, text=[" ".join(TEXT)])])


def test_settings_that_differ_are_shown(one, two):
    configs = (
        {"lr": 1e-3, "optimizer": {"name": "adam", "eps": 1}},
        {"lr": 1e-3, "optimizer": {"name": "adam", "eps": 2}},
    )
    reports = [
        dataclasses.replace(r, dictionaries=[dataclasses.replace(r.dictionaries[0], config=config)])
        for r, config in zip((one, two), configs, strict=True)
    ]
    found = compare_reports(reports)
    assert found.settings["top_k-8"]["optimizer.eps"] == (1, 2) and "lr" not in found.settings["top_k-8"]
    assert "optimizer.eps: 1 -> 2" in COMPARISONS["text"](found)


def test_every_form_has_every_difference(one, two, tmp_path):
    found = compare_reports([one, two])
    text = {name: write(found) for name, write in COMPARISONS.items()}
    assert len(json.loads(text["json"])["differences"]) == len(found.differences)
    rows = list(csv.DictReader(io.StringIO(text["csv"])))
    assert [float(row["difference"]) for row in rows] == [d.difference for d in found.differences]
    assert text["latex"].count("\\\\") == len(rows) + 1 and "top\\_k-8" in text["latex"]
    assert text["text"].count("\u00b1") == len(rows) and "Holm" in text["text"]
    for folder, one_of in (("a", one), ("b", two)):
        write_report(one_of, tmp_path / folder, ("json",))
    again = compare_reports([read_report(tmp_path / folder) for folder in "ab"])
    assert COMPARISONS["csv"](again) == text["csv"]


def test_names_command_no_terminal_and_no_tex(one, two):
    bad = "\x1b[31m%$_&\\x"
    renamed = dataclasses.replace(two, dictionaries=[dataclasses.replace(two.dictionaries[0], name=bad)])
    found = compare_reports([one, renamed])
    assert "\x1b" not in COMPARISONS["text"](found)
    assert r"\%\$\_\&\textbackslash{}x" in COMPARISONS["latex"](found)


def test_of_two_filters_the_rules_that_differ_are_named_whole(one):
    many = tuple(range(100, 140))
    first = TokenFilter(exclude_ids=many, exclude_first=True, max_norm_multiple=10.0)
    second = TokenFilter(exclude_ids=(*many[1:], 7), exclude_first=True, seqpos_slice=(1, None))
    described = [
        dataclasses.replace(one, data=dataclasses.replace(one.data, filter=rule.describe())) for rule in (first, second)
    ]
    with pytest.raises(DataError) as raised:
        compare_reports(described)
    assert (
        "(token filter: the token id 100, tokens with more than 10 times the median norm and the token id 7, "
        "positions outside (1, None))"
    ) in str(raised.value)
    assert "token_filter=" in str(raised.value)  # as no command evaluates them together
