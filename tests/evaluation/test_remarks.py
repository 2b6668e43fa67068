"""What a report says of its figures in words, and what it leaves unmarked."""

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, EvaluationConfig, evaluate_dictionaries, load_model
from dictionary_learning.dictionaries import Normalized
from dictionary_learning.evaluation import Candidate
from dictionary_learning.evaluation._bootstrap import document_weights, error_bar
from dictionary_learning.evaluation.reports import RENDERERS
from dictionary_learning.evaluation.reports._contents import best_values, headline, sparser_than_k, uncertainty
from dictionary_learning.evaluation.reports._plots import scatter_plot, training_plot
from dictionary_learning.evaluation.reports._svg import looks
from tests import tiny
from tests.evaluation.test_reports import SITE, dictionary, report  # noqa: F401  (a fixture)


def test_far_fewer_latents_than_k_are_said(report):  # noqa: F811
    assert sparser_than_k(report) == ""
    first = report["dictionaries"][0]
    first["metrics"]["l0"] = 0.4 * first["k"]
    told = sparser_than_k(report)
    assert "'small' 3.2 of 8" in told and "third of the learning rate" in told and "'large'" not in told
    assert told in RENDERERS["html"](report).replace("&#39;", "'") and "Far fewer latents fire" in RENDERERS[
        "markdown"
    ](report)
    first["k"] = None
    assert sparser_than_k(report) == ""


def test_cross_entropy_without_error_bars_is_said(report):  # noqa: F811
    report["data"] |= {"n_resamples": 100, "n_documents": 40}
    bar = {"standard_error": 0.01, "low": 0.0, "high": 1.0}
    for d in report["dictionaries"]:
        d["errors"] = {"fvu": bar, "ce_increase": bar}
    assert "Cross-entropy has none" not in uncertainty(report)
    del report["dictionaries"][0]["errors"]["ce_increase"]
    assert "Cross-entropy has none" in uncertainty(report)


def test_nothing_is_best_among_dictionaries_of_other_sparsity():
    pair = [dictionary("a", SITE, 16, 0.3, 0.2), dictionary("b", SITE, 20, 0.2, 0.1)]
    assert (1, "fvu") in best_values(pair)
    pair[1]["metrics"]["l0"] = 565.0
    assert best_values(pair) == set()


def test_a_dictionary_of_several_sites_is_at_each(report):  # noqa: F811
    report["dictionaries"] = [dictionary("crosscoder", "model.layers.1:out, model.layers.3:out", 8, 0.3, 0.2)]
    assert headline(report).startswith("1 dictionary at 2 sites of")


@pytest.mark.parametrize(("high", "n_ticks"), [(0.2, 3), (0.9, 4), (40.0, 4)])
def test_a_logarithmic_axis_says_so_and_has_ticks(high, n_ticks):
    pair = [dictionary("a", SITE, 16, 0.1, 0.2), dictionary("b", SITE, 20, high, 0.1)]
    for d, last in zip(pair, (0.1, high), strict=True):
        d["history"] = [{"step": n, "tokens": n, "fvu": last} for n in (1, 2)]
    seen = looks(pair)
    for svg in (scatter_plot(pair, seen), training_plot(pair, seen, "fvu", "FVU")):
        assert (", log scale<" in svg) == (high / 0.1 > 4)
        y_axis = (
            svg.split('id="matplotlib.axis_2"')[1].split('id="patch')[0] if 'id="matplotlib.axis_2"' in svg else svg
        )
        assert y_axis.count("<text") >= n_ticks


def test_a_figure_that_all_documents_share_has_no_error():
    weights = document_weights(5, 200, 0)
    assert weights is not None
    n = torch.full((5,), 7.0, dtype=torch.float64)
    resampled = (weights @ (n * 0.13)) / (weights @ n)
    bar = error_bar(resampled, 5)
    assert resampled.std() > 0 and bar is not None and bar.standard_error == 0.0


def test_a_dictionary_with_a_normalization_is_named_with_what_is_inside():
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    whole = Candidate("a", Normalized(AutoEncoderTopK(tiny.DIM, 48, 3), "layer_norm"), "model.layers.1")
    config = EvaluationConfig(n_tokens=64, n_fidelity_tokens=0, ctx_len=16)
    found = evaluate_dictionaries(model, [whole], tiny.documents(8), config)
    assert found.dictionaries[0].class_name == "Normalized AutoEncoderTopK"
