"""Error bars equal those of whole documents that are drawn again, cover the truth, and survive files and merging."""

import dataclasses
import json
import math
import re

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Candidate, EvaluationConfig, evaluate_dictionaries, load_model
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation import (
    EvaluationBatch,
    ReconstructionMetric,
    SparsityMetric,
    merge_reports,
    read_report,
)
from dictionary_learning.evaluation._bootstrap import chance_of, document_weights, error_bar, wilson_bar
from dictionary_learning.evaluation._documents import group_documents
from dictionary_learning.evaluation._reading import REPORT, SUMS
from dictionary_learning.evaluation.reports import RENDERERS, render_json, write_report
from dictionary_learning.evaluation.reports._contents import percent, plus_minus
from tests import tiny

SITE = "model.layers.1:out"
CONFIG = EvaluationConfig(n_tokens=10**6, n_fidelity_tokens=10**6, ctx_len=16, batch_size=4, n_resamples=200)
TEXT = tiny.documents(30, seed=7)


def batch(n_documents: int = 9) -> EvaluationBatch:
    groups = torch.arange(n_documents).repeat_interleave(torch.arange(1, n_documents + 1))
    x = torch.randn(len(groups), 6) + groups.unsqueeze(1) * 0.2
    latents = torch.randn(len(groups), 20) * (torch.rand(len(groups), 20) < 0.15)
    return EvaluationBatch(x, x + 0.3 * torch.randn_like(x), latents, groups)


def evaluated(text=TEXT, **changes):
    torch.manual_seed(1)
    candidates = [Candidate(name, AutoEncoderTopK(tiny.DIM, 64, k), SITE) for name, k in (("a", 4), ("b", 8))]
    return evaluate_dictionaries(
        load_model(tiny.model(), tokenizer=tiny.tokenizer()), candidates, text, CONFIG.replace(**changes)
    )


@pytest.mark.parametrize("make", [ReconstructionMetric, SparsityMetric])
def test_a_resample_equals_the_metric_of_the_documents_that_it_draws(make):
    whole, metric = batch(), make()
    metric.update(whole)
    weights = document_weights(9, 5, seed=3)
    resampled = metric.figures(weights)
    for i, counts in enumerate(weights.long().tolist()):
        rows = torch.cat([(whole.groups == d).nonzero().squeeze(1).repeat(n) for d, n in enumerate(counts)])
        again = make()
        again.update(EvaluationBatch(whole.x[rows], whole.x_hat[rows], whole.latents[rows]))
        for name, value in again.compute().items():
            if name in resampled and "alive" not in name:  # of which only the first order is kept
                assert float(resampled[name][i]) == pytest.approx(value, rel=1e-6), name


def test_the_error_of_the_latents_alive_is_that_of_the_jackknife():
    whole, metric = batch(), SparsityMetric()
    metric.update(whole)
    n, without = 9, []
    for left_out in range(n):
        rows = whole.groups != left_out
        without.append(int((whole.latents[rows] != 0).any(0).sum()))
    values = torch.tensor(without).double()
    jackknife = ((n - 1) / n * (values - values.mean()).square().sum()).sqrt()
    found = error_bar(metric.figures(document_weights(n, 40_000, 0))["n_alive"], n)
    assert found.standard_error == pytest.approx(float(jackknife), rel=0.03)  # of 40,000 resamples


@pytest.mark.parametrize("n", [5, 40])
def test_intervals_cover_the_truth(n):
    """Of a ratio of sums over documents of different lengths, whose tokens are alike."""
    generator = torch.Generator().manual_seed(0)
    truth, n_covered, n_trials = 2.0, 0, 200
    for trial in range(n_trials):
        lengths = torch.randint(5, 50, (n,), generator=generator).double()
        levels = truth + torch.randn(n, generator=generator).double()
        sums = levels * lengths + torch.randn(n, generator=generator).double() * lengths.sqrt()
        weights = document_weights(n, 400, trial)
        bar = error_bar((weights @ sums) / (weights @ lengths), n)
        n_covered += bar.low <= truth <= bar.high
    assert 0.90 <= n_covered / n_trials <= 0.985  # two standard errors of a count of 200 about 0.95


def test_chance_is_that_of_student():
    # a table's quantiles of t: with 2 degrees of freedom 4.303, with 19 2.093
    for n_groups, quantile in ((3, 4.303), (20, 2.093)):
        assert chance_of(-0.5 * quantile, 0.5, n_groups) == pytest.approx(0.05, rel=1e-3)
    assert chance_of(0.0, 0.0, 9) == 1 and chance_of(0.1, 0.0, 9) == 0


def test_tokens_alone_would_make_the_error_too_small():
    """Documents that differ, each of 100 tokens that do not: only documents are independent."""
    levels = torch.randn(30).repeat_interleave(100)
    x = torch.randn(3000, 2)
    error = levels.abs().unsqueeze(1).expand(-1, 2)
    metric, apart = ReconstructionMetric(), ReconstructionMetric()
    metric.update(EvaluationBatch(x, x + error, torch.ones(3000, 1), torch.arange(30).repeat_interleave(100)))
    apart.update(EvaluationBatch(x, x + error, torch.ones(3000, 1), torch.arange(3000) % 1000))
    clustered = error_bar(metric.figures(document_weights(30, 500, 0))["mse"], 30).standard_error
    assert clustered > 4 * error_bar(apart.figures(document_weights(1000, 500, 0))["mse"], 1000).standard_error


def test_groups_of_documents_do_not_depend_on_batches():
    document = torch.tensor([[4, 4, 4, 7], [7, 7, 2, 2], [2, 9, 9, -1]])
    tokens = TokenBatch(torch.zeros(3, 4, dtype=torch.long), document >= 0, document)
    parts = [
        TokenBatch(tokens.input_ids[i : i + 1], tokens.attention_mask[i : i + 1], document[i : i + 1]) for i in range(3)
    ]
    whole = group_documents([tokens])
    assert whole.by_batch[0].tolist() == [[0, 0, 0, 1], [1, 1, 2, 2], [2, 3, 3, 0]]
    assert whole.documents.tolist() == [4, 7, 2, 9] and whole.n_documents == 4
    assert torch.equal(torch.cat(group_documents(parts).by_batch), whole.by_batch[0])
    few = group_documents([tokens], most=2)
    assert few.by_batch[0][1].tolist() == [0, 0, 1, 1] and few.documents.tolist() == [4, 2]


def test_every_figure_of_a_report_has_its_error_bar():
    report = evaluated()
    entry = report.dictionaries[0]
    without = set(entry.metrics) - set(entry.errors)
    # counts of the text, a share of single latents, and ratios to an ablation that costs nothing
    assert without <= {"n_tokens", "frac_dense", *(f"ce_recovered_{kind}" for kind in ("zero", "mean", "resample"))}
    assert all(bar.low <= entry.metrics[name] <= bar.high for name, bar in entry.errors.items() if name != "fvu")
    assert report.errors["ce_clean"].standard_error > 0
    assert {"ce_zero", "ce_mean", "ce_resample", "kl_zero"} <= set(report.ablation[SITE].errors)
    assert entry.figure("fvu").error is entry.errors["fvu"] and entry.figure("fvu").value == entry["metrics"]["fvu"]


def test_intervals_end_where_their_figures_do():
    """Of few documents, Student's t would make them wider than the range of a figure."""
    report = evaluated([" ".join(TEXT[:40]), " ".join(TEXT[5:60]), " ".join(TEXT[20:90])])
    groups = [group for entry in report.dictionaries for group in (*entry.by_position, *entry.by_token_class)]
    ranges = {"frac_alive": (0, 1), "share_of_tokens": (0, 1), "share_of_error": (0, 1), "cossim": (-1, 1)}
    ranges |= dict.fromkeys(("l0", "mse", "fvu", "l2_ratio", "kl", "l1_loss", "n_alive"), (0, math.inf))
    seen = set()
    for errors in (one.errors for one in (*report.dictionaries, *groups)):
        for name, bar in (errors or {}).items():
            low, high = ranges.get(name, (-math.inf, math.inf))
            assert low <= bar.low <= bar.high <= high, name
            seen.add(name)
    assert set(ranges) - seen <= {"fvu"}
    for form in ("markdown", "html"):
        shares = re.findall(r"\(([\d.]+)% to ([\d.]+)%\)", RENDERERS[form](report))
        assert shares and all(0 <= float(low) <= float(high) <= 100 for low, high in shares)
        assert not re.search(r"%\W* ± ", RENDERERS[form](report))
    old = {"standard_error": 0.06, "low": 0.85, "high": 1.1}
    assert plus_minus(old, percent) == " (85.00% to 100.00%)" and plus_minus(old) == " ± 0.0600"


@pytest.mark.parametrize(("share", "n"), [(0.0, 4), (1.0, 4), (1.0, 100), (0.5, 10), (0.97, 30)])
def test_wilson_is_that_of_statistics(share, n):
    expected = proportion_confint(share, n)
    bar = wilson_bar(share, n)
    assert (bar.low, bar.high) == pytest.approx(expected, abs=1e-9) and 0 <= bar.low <= share <= bar.high <= 1


def proportion_confint(share, n):
    """The roots of (p - share)^2 = z^2 p (1 - p) / n."""
    z = 1.959963984540054
    a, b, c = 1 + z**2 / n, -(2 * share + z**2 / n), share**2
    root = math.sqrt(max(b * b - 4 * a * c, 0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_error_bars_do_not_depend_on_batches_or_on_the_order_of_candidates():
    first, second = evaluated(), evaluated(batch_size=1)
    for one, two in zip(first.dictionaries, second.dictionaries, strict=True):
        for name, bar in one.errors.items():
            assert tuple(two.errors[name].values()) == pytest.approx(tuple(bar.values()), rel=1e-3, abs=1e-4), name
    assert first.data == second.data


def test_one_document_has_no_error_bars():
    report = evaluated([" ".join(TEXT)])
    assert report.data.n_documents == 1 and report.dictionaries[0].errors is None
    text = RENDERERS["markdown"](report)
    assert "No error bars: 1 document" in text and "\u00b1 0" not in text


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_error_bars_stand_beside_their_figures(name):
    report = evaluated()
    shown = f"\u00b1 {report.dictionaries[0].errors['fvu'].standard_error:.4f}"
    text = RENDERERS[name](report)
    assert shown in text and "standard error over 30 documents" in text and "8-15" in text


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = evaluated()
    paths = write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", REPORT, "report.md", SUMS]
    for place in (tmp_path, paths["json"]):
        again = read_report(place)
        assert render_json(again) == render_json(report)
        assert again.measured.figures(1)["fvu"] == report.measured.figures(1)["fvu"]
    from safetensors.torch import load_file

    counts = load_file(tmp_path / SUMS)["density/0"]
    assert counts.shape == (64,) and float(counts.sum()) == pytest.approx(report.dictionaries[0].metrics["l0"])


def test_reports_of_the_first_version_are_read(tmp_path):
    old = {
        "title": "Old", "model": {"name": "m"}, "ce_clean": None,
        "data": {"source": "text", "n_tokens_read": 10, "n_tokens_scored": 9, "n_tokens_nonfinite": 0, "ctx_len": 4, "filter": "padding"},
        "ablation": {SITE: {"ce_zero": 1.0, "ce_mean": 2.0, "kl_zero": 0.5, "kl_mean": None}},
        "dictionaries": [{"name": "a", "site": SITE, "class": "AutoEncoder", "activation_dim": 4, "dict_size": 8, "k": None,
                          "metrics": {"fvu": 0.5, "l0": None}, "density": {"counts": [1]}, "config": {}, "history": []}],
    }  # fmt: skip
    (tmp_path / REPORT).write_text(json.dumps(old))
    report = read_report(tmp_path)
    entry = report.dictionaries[0]
    assert (entry.class_name, entry.metrics["fvu"], entry.errors, report.measured) == ("AutoEncoder", 0.5, None, None)
    assert entry.metrics["l0"] != entry.metrics["l0"]
    (tmp_path / REPORT).write_text(json.dumps(old | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema_version=99"):
        read_report(tmp_path)


@pytest.mark.parametrize("bad", ["", "[]", "{", '{"dictionaries": [{}]}', '{"dictionaries": 3}'])
def test_what_is_no_report_is_refused(tmp_path, bad):
    (tmp_path / REPORT).write_text(bad)
    with pytest.raises(DataError, match="is no report of an evaluation"):
        read_report(tmp_path)


def test_damaged_sums_are_refused(tmp_path):
    write_report(evaluated(), tmp_path, ("json",))
    (tmp_path / SUMS).write_bytes((tmp_path / SUMS).read_bytes()[:100])
    with pytest.raises(DataError, match="holds no sums of an evaluation"):
        read_report(tmp_path)


def test_merged_reports_equal_the_report_of_the_whole(tmp_path):
    """Contexts are documents here, so that a part of the text has the same contexts as the whole."""
    long = [text for text in TEXT if len(text.split()) > 20]
    # a random ablation draws from each part's own tokens, and so does the mean one
    changes = {"pack": False, "ablations": ("zero",)}
    whole, parts = evaluated(long, **changes), [evaluated(part, **changes) for part in (long[:5], long[5:])]
    for number, part in enumerate(parts):
        write_report(part, tmp_path / str(number), ("json",))
    merged = merge_reports([read_report(tmp_path / "0"), read_report(tmp_path / "1")])
    for one, two in zip(whole.dictionaries, merged.dictionaries, strict=True):
        for held in ("metrics", "metrics_all_tokens"):
            assert one[held] == pytest.approx(two[held], rel=1e-5, abs=1e-7, nan_ok=True)
        for name, bar in one.errors.items():
            assert tuple(two.errors[name].values()) == pytest.approx(tuple(bar.values()), rel=1e-3, abs=1e-6)
        assert one.density["counts"] == two.density["counts"]
        assert one.dead_by_tokens == two.dead_by_tokens
    counts = ("n_tokens_read", "n_tokens_scored", "n_tokens_predicted", "n_documents", "n_groups")
    assert [whole.data[name] for name in counts] == [merged.data[name] for name in counts]
    assert merged.ce_clean == pytest.approx(whole.ce_clean, rel=1e-6)


def test_reports_that_do_not_belong_together_are_not_merged():
    report = evaluated()
    with pytest.raises(DataError, match="the same tokens"):
        merge_reports([report, report])
    other = evaluated(TEXT[:9])
    with pytest.raises(DataError, match="another model"):
        merge_reports([report, dataclasses.replace(other, model={"name": "x"})])
    facts = dataclasses.replace(other.measured.facts, names=("a", "c"))
    renamed = dataclasses.replace(other, measured=dataclasses.replace(other.measured, facts=facts))
    with pytest.raises(DataError, match="differ in names"):
        merge_reports([report, renamed])
