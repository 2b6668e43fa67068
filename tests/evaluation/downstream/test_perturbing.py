"""What ablated latents do to probes, against token by token sums and a planted answer."""

import math

import numpy as np
import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Candidate
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._candidates import place
from dictionary_learning.evaluation.downstream import (
    PerturbationConfig,
    _fitted,
    spurious_correlation_removal,
    targeted_probe_perturbation,
)
from dictionary_learning.evaluation.downstream._baselines import principal_components
from dictionary_learning.evaluation.downstream._coded import coded_texts, effects, strongest
from dictionary_learning.evaluation.downstream._logistic import fit_probe
from dictionary_learning.evaluation.downstream._pooling import TextReader
from tests import tiny
from tests.evaluation.downstream.planted import SITE, loud_words, model, speller, texts_with

CONFIG = PerturbationConfig(ns=(1, 2), n_resamples=100, strengths=(1.0,))


def test_means_without_latents_are_those_of_tokens_without_them():
    traced, made = model(), AutoEncoderTopK(tiny.DIM, 24, 4)
    placed = place(traced, Candidate("d", made, "model.layers.1"))
    texts = tiny.documents(6, 9, seed=2)
    reader = TextReader(traced, placed[0].reads, 64, 4, keeps_end=False)
    views = coded_texts(reader, placed, texts, 4, True, 0)
    assert [one.role for one in views] == ["pca", "random", "dictionary"]
    chosen = [3, 17, 5, 9]
    for number, text in enumerate(texts):
        ids = torch.tensor([[0, *traced.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        x = traced.capture(ids, None, ["model.layers.1"])["model.layers.1"][0, 1:].float()
        f = made.encode(x)
        g = f.clone()
        g[:, chosen] = 0
        expected = (made.decode(g) + x - made.decode(f)).mean(0)
        assert torch.allclose(torch.from_numpy(views[2].without(np.array(chosen))[number]).float(), expected, atol=1e-4)


def test_components_are_directions_of_the_largest_variance_without_those_of_rounding():
    x = np.random.default_rng(0).normal(size=(6, 9)) * np.arange(1, 10)
    found = principal_components(x)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    assert found.axes.shape == (5, 9)  # six rows differ in five directions
    assert np.abs(np.diag(found.axes @ vectors[:, ::-1])) == pytest.approx(1)
    assert found.coordinates(x).var(0) == pytest.approx(values[::-1][:5])
    assert found.coordinates(x) @ found.axes + found.mean == pytest.approx(x)


def test_effects_are_their_formula():
    traced, made = model(), AutoEncoderTopK(tiny.DIM, 24, 4)
    placed = place(traced, Candidate("d", made, "model.layers.1"))
    reader = TextReader(traced, placed[0].reads, 64, 4, keeps_end=False)
    (view,) = coded_texts(reader, placed, tiny.documents(8, 9, seed=2), 8, False, 0)
    rows, truth = torch.arange(8).numpy(), torch.tensor([1, 0, 0, 1, 1, 0, 1, 0]).bool().numpy()
    weight = torch.randn(tiny.DIM, generator=torch.Generator().manual_seed(0)).double().numpy()
    for i in range(24):
        change = view.latents[truth, i].mean() - view.latents[~truth, i].mean()
        one = change * float(made.W_dec[i].detach().double().numpy() @ weight)
        assert effects(view, weight, rows, truth, signed=False)[i] == pytest.approx(abs(one), abs=1e-9)
        assert effects(view, weight, rows, truth, signed=True)[i] == pytest.approx(one if change > 0 else 0, abs=1e-9)
    values = effects(view, weight, rows, truth, signed=True)
    assert (values > 0).any() and (values < 0).any()
    expected = [i for value, i in sorted((-value, i) for i, value in enumerate(values)) if value < 0]
    for n in (1, 3, 24):
        assert strongest(values, n).tolist() == expected[:n]
    assert strongest(np.array([0.0, 2, -3, 2, 5]), 4).tolist() == [4, 1, 3]


@pytest.fixture
def fits(monkeypatch):
    """The number of probes that are fitted with cross-validation."""
    counted = []

    def counting(*given, **options):
        counted.append(1)
        return fit_probe(*given, **options)

    monkeypatch.setattr(_fitted, "fit_probe", counting)
    return counted


def words_and_dictionary():
    traced = model()
    words = loud_words(traced, 3)
    return traced, words, speller(traced, words)


def test_latents_of_one_class_hurt_its_probe_alone(fits):
    traced, words, made = words_and_dictionary()
    texts = texts_with(words, 240, 0, longest=4)
    rows = [(f"{text} {words[n % 3]}", "abc"[n % 3]) for n, text in enumerate(texts)]
    report = targeted_probe_perturbation(traced, Candidate("d", made, SITE), rows, CONFIG)
    found = {(one.name, one.k): one for one in report.scores}
    own = found["d", 1]
    assert own.metrics["intended"] > 0.2
    assert own.metrics["tpp"] == pytest.approx(own.metrics["intended"] - own.metrics["unintended"])
    assert own.metrics["tpp"] > found["random like d", 1].metrics["tpp"]
    assert own.errors["tpp"].low <= own.metrics["tpp"] <= own.errors["tpp"].high
    assert set(report.probes) == {"a", "b", "c"} and min(report.probes.values()) > 0.8
    assert "2605.18229" in report.warning
    assert len(fits) == 3  # one for each class, and not for each view


def test_ablating_the_attribute_frees_the_probe(fits):
    traced = model()
    words = loud_words(traced, 4)
    made = speller(traced, words)
    texts = texts_with(words, 400, 0, longest=3)
    rows = [
        {"text": f"{text} {words[n % 2]} {words[2 + n // 2 % 2]}", "label": n % 2, "attribute": n // 2 % 2}
        for n, text in enumerate(texts)
    ]
    report = spurious_correlation_removal(traced, Candidate("d", made, SITE), rows, CONFIG)
    assert len(fits) == 3  # of the label, the attribute, and both at once
    found = {(one.name, one.k): one for one in report.scores}
    assert report.probes["label"] > 0.9 and report.probes["biased on label"] < report.probes["label"]
    assert found["d", 2].metrics["scr_label"] > 0.5 and found["d", 2].metrics["scr_attribute"] > 0.5
    worse = min(("label", "attribute"), key=lambda key: report.probes[f"biased on {key}"])
    assert found["d", 1].metrics["scr"] == found["d", 1].metrics[f"scr_{worse}"]
    triples = [tuple(row.values()) for row in rows]
    again = spurious_correlation_removal(traced, Candidate("d", made, SITE), triples, CONFIG)
    assert [one.metrics for one in again.scores] == [one.metrics for one in report.scores]


@pytest.mark.parametrize(
    ("examples", "error", "said"),
    [
        ([], DataError, "no example"),
        ([("a", 1)], ConfigError, "text, label, attribute"),
        ([{"text": "a", "label": 1}], DataError, "no column 'attribute'"),
        ([(f"w{n}", n % 3, n % 2) for n in range(60)], DataError, "label has 3 classes"),
        ([(f"w{n}", n % 2, n % 2) for n in range(60)], DataError, "2 of 4 pairs"),
        ([(f"w{n}", n % 2, math.nan) for n in range(60)], DataError, "has the label nan"),
    ],
)
def test_examples_that_show_no_correlation_are_refused(examples, error, said):
    traced, _, made = words_and_dictionary()
    with pytest.raises(error, match=said):
        spurious_correlation_removal(traced, Candidate("d", made, SITE), examples, CONFIG)


def test_two_classes_are_too_few_for_perturbation():
    traced, _, made = words_and_dictionary()
    rows = [(text, n % 2) for n, text in enumerate(tiny.documents(40, seed=3))]
    with pytest.raises(DataError, match="2 classes"):
        targeted_probe_perturbation(traced, Candidate("d", made, SITE), rows, CONFIG)
    with pytest.raises(ConfigError, match="2 tasks"):
        targeted_probe_perturbation(traced, Candidate("d", made, SITE), {"a": rows, "b": rows}, CONFIG)
