"""Logistic regression, rankings and figures against their definitions, and scikit-learn where it is installed."""

import itertools

import numpy as np
import pytest
import torch

from dictionary_learning.evaluation.downstream._figures import figures_of
from dictionary_learning.evaluation.downstream._logistic import fit_l1_logistic, fit_logistic, fit_probe
from dictionary_learning.evaluation.downstream._ranking import RANKINGS, best_columns

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(120, 6))
Y = X[:, 0] - X[:, 1] + RANDOM.normal(size=120) > 0


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_gradient_of_the_fit_is_zero(strength):
    probe = fit_logistic(X, Y, strength)
    w, b = (torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in probe)
    sign = torch.from_numpy(np.where(Y, 1.0, -1.0))
    loss = w @ w / 2 + strength * torch.nn.functional.softplus(-sign * (torch.from_numpy(X) @ w + b)).sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-3 * strength and b.grad.abs() < 1e-3 * strength


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_a_fit_does_not_depend_on_where_it_starts(strength):
    plain = fit_logistic(X, Y, strength)
    for start in (fit_logistic(X, Y, 1e-3), fit_logistic(X, Y, 1e3), plain):
        found = fit_logistic(X, Y, strength, start)
        assert np.allclose(found.weight, plain.weight, atol=1e-3) and abs(found.bias - plain.bias) < 1e-3


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_fits_equal_those_of_scikit_learn(strength):
    linear = pytest.importorskip("sklearn.linear_model")
    theirs = linear.LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(X, Y)
    ours = fit_logistic(X, Y, strength)
    assert np.allclose(ours.weight, theirs.coef_[0], atol=1e-4) and abs(ours.bias - theirs.intercept_[0]) < 1e-4
    options = {"l1_ratio": 1.0, "solver": "saga", "random_state": 0}
    theirs = linear.LogisticRegression(C=strength, tol=1e-9, max_iter=20_000, **options).fit(X, Y)
    ours = fit_l1_logistic(X, Y, strength)
    assert np.allclose(ours.weight, theirs.coef_[0], atol=1e-3)
    assert ((ours.weight != 0) == (np.abs(theirs.coef_[0]) > 1e-6)).all()


def test_a_probe_does_not_depend_on_the_units_of_columns():
    scaled = fit_probe(X * [1e-6, 1, 1e6, 1, 1, 1] + 7, Y, [1.0])
    plain = fit_probe(X, Y, [1.0])
    scores = scaled.scores(X * [1e-6, 1, 1e6, 1, 1, 1] + 7)
    assert np.allclose(scores, plain.scores(X), atol=1e-4)


def test_constant_columns_and_separable_classes_do_no_harm():
    x = np.column_stack([np.where(Y, 3.0, 2.0), np.full(len(Y), 5.0), np.zeros(len(Y))])
    probe = fit_probe(x, Y, [0.01, 1.0, 1e4])
    assert np.isfinite(probe.weight).all() and ((probe.scores(x) > 0) == Y).all()
    assert probe.weight[1] == probe.weight[2] == 0
    few = fit_probe(x[:3], np.array([True, False, True]), [1.0])
    assert np.isfinite(few.weight).all()


def brute_auc(scores, truth):
    pairs = list(itertools.product(scores[truth], scores[~truth]))
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def test_figures_of_resamples_are_those_of_repeated_texts():
    scores = np.round(RANDOM.normal(size=40), 1)  # with ties
    truth = RANDOM.random(40) < 0.4
    weights = torch.from_numpy(RANDOM.integers(0, 4, size=(5, 40)).astype(np.float64))
    found = figures_of(scores, truth, weights)
    for number, counts in enumerate(weights.long().numpy()):
        s, t = np.repeat(scores, counts), np.repeat(truth, counts)
        told = s > 0
        rates = [(told[t]).mean(), (~told[~t]).mean()]
        f1 = [2 * (told & t).sum() / (told.sum() + t.sum()), 2 * (~told & ~t).sum() / ((~told).sum() + (~t).sum())]
        assert float(found["auc"][number]) == pytest.approx(brute_auc(s, t))
        assert float(found["accuracy"][number]) == pytest.approx((told == t).mean())
        assert float(found["balanced_accuracy"][number]) == pytest.approx(np.mean(rates))
        assert float(found["f1"][number]) == pytest.approx(t.mean() * f1[0] + (1 - t.mean()) * f1[1])


def test_figures_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, truth = np.round(RANDOM.normal(size=60), 1), RANDOM.random(60) < 0.3
    found = figures_of(scores, truth, torch.ones(1, 60, dtype=torch.float64))
    assert float(found["auc"]) == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert float(found["balanced_accuracy"]) == pytest.approx(metrics.balanced_accuracy_score(truth, scores > 0))
    assert float(found["f1"]) == pytest.approx(metrics.f1_score(truth, scores > 0, average="weighted"))


def test_a_resample_without_a_class_has_no_figure():
    found = figures_of(np.array([1.0, -1.0]), np.array([True, False]), torch.tensor([[2.0, 0], [1, 1]]).double())
    assert all(torch.isnan(values[0]) and values[1] == 1 for values in found.values())


def test_rankings_are_their_formulas():
    x = np.maximum(X, 0)
    x[:, 5] = 0
    for column in range(5):
        nonzero = np.abs(x[:, column])[x[:, column] != 0].mean()
        expected = abs(x[Y, column].mean() - x[~Y, column].mean()) / nonzero
        assert RANKINGS["mean_difference"](x, Y)[column] == pytest.approx(expected)
    f = pytest.importorskip("scipy.stats").f_oneway(x[Y][:, :5], x[~Y][:, :5]).statistic
    assert np.allclose(RANKINGS["f_statistic"](x, Y)[:5], f)
    for name in RANKINGS:
        assert set(best_columns(RANKINGS[name](x, Y), 2)) == {0, 1}, name
        assert RANKINGS[name](x, Y)[5] == 0


def test_a_column_without_exception_comes_first():
    x = np.column_stack([X[:, 0], Y.astype(float), np.ones(len(Y))])
    assert best_columns(RANKINGS["f_statistic"](x, Y), 3).tolist() == [1, 0, 2]
