"""Probes of planted latents, and what stands beside every score."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config

from dictionary_learning import AutoEncoderTopK, BatchTopKSAE, Candidate
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream import ProbingConfig, probe_latents
from dictionary_learning.evaluation.downstream._pooling import pool_rows
from dictionary_learning.evaluation.reports import RENDERERS
from dictionary_learning.latents import to_dense
from tests import tiny
from tests.evaluation.downstream.planted import SITE, loud_words, model, speller, texts_with

QUICK = ProbingConfig(ks=(1, 4), n_resamples=200, strengths=(1.0,))


def planted(n=120, seed=0):
    """Returns a model, a dictionary whose latent 0 says a word, and texts labelled by that word."""
    traced = model()
    words = loud_words(traced, 3)
    texts = texts_with(words, n, seed)
    rows = [(text + f" {words[0]} w1", "with") for text in texts[: n // 2]] + [(text, "no") for text in texts[n // 2 :]]
    return traced, speller(traced, words), rows


def by_name(scores):
    return {(one.name, one.k): one for one in scores}


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("ranking", ["mean_difference", "f_statistic", "l1"])
def test_a_latent_that_is_the_label_has_auc_1_at_k_1(pooling, ranking):
    traced, dictionary, rows = planted()
    report = probe_latents(
        traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(pooling=pooling, ranking=ranking)
    )
    (task,) = report.tasks
    found = by_name(task.scores)
    assert found["d", 1].metrics["auc"] == found["d", 1].metrics["accuracy"] == 1
    assert found["d", 1].latents == {"with": [0]}
    bar = found["d", 1].errors["auc"]
    assert bar.low < bar.high == 1  # other texts might tell otherwise
    gain = found["d", 1].metrics["auc"] - found["PCA", 1].metrics["auc"]
    assert found["d", 1].metrics["auc_over_pca"] == pytest.approx(gain) and gain >= 0
    assert found["majority class", None].metrics["accuracy"] == 0.5
    assert {one.role for one in task.scores} == {"dictionary", "random", "pca", "neurons", "dense", "majority"}


def test_shuffled_labels_are_not_told():
    traced, dictionary, rows = planted(400)
    labels = np.random.default_rng(1).permutation([label for _, label in rows])
    shuffled = [(text, str(label)) for (text, _), label in zip(rows, labels, strict=True)]
    report = probe_latents(traced, Candidate("d", dictionary, SITE), shuffled, QUICK)
    for one in report.tasks[0].scores:
        bar = (one.errors or {}).get("auc")
        assert abs(one.metrics["auc"] - 0.5) <= 4 * (bar.standard_error if bar else 0) + 1e-9, one.name


def test_batches_and_other_dictionaries_change_nothing():
    traced, dictionary, rows = planted(60)
    other = AutoEncoderTopK(tiny.DIM, 32, 4)
    alone = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK)
    beside = probe_latents(
        traced,
        [Candidate("d", dictionary, SITE), Candidate("d", other, "model.layers.1")],
        rows,
        QUICK.replace(batch_size=3),
    )
    ours = {key: one for key, one in by_name(beside.tasks[0].scores).items() if key[0] in ("d", "random like d")}
    assert set(ours) and {one.name for one in beside.tasks[0].scores} >= {"d #2", f"PCA at {SITE}:out"}
    for key, one in ours.items():
        assert one.metrics["auc"] == pytest.approx(by_name(alone.tasks[0].scores)[key].metrics["auc"])


def test_classes_are_told_one_against_the_rest_and_tasks_are_averaged():
    traced = model()
    words = loud_words(traced, 3)
    texts = texts_with(words, 180, 0)
    three = [(f"{text} {words[n % 3]}", "abc"[n % 3]) for n, text in enumerate(texts)]
    two = [row for row in three if row[1] != "c"]
    dictionary = speller(traced, words)
    report = probe_latents(traced, Candidate("d", dictionary, SITE), {"three": three, "two": two}, QUICK)
    found = by_name(report.tasks[0].scores)["d", 1]
    assert found.latents == {"a": [0], "b": [1], "c": [2]}
    assert found.metrics["auc"] == 1
    pair = [by_name(task.scores)["PCA", 4].metrics["auc"] for task in report.tasks]
    assert by_name(report.means)["PCA", 4].metrics["auc"] == pytest.approx(np.mean(pair))


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("kind", [AutoEncoderTopK, BatchTopKSAE])
def test_sparse_latents_are_pooled_as_dense_ones(pooling, kind):
    made = kind(tiny.DIM, 24, 4)
    if kind is BatchTopKSAE:
        made.nonlinearity.threshold.fill_(0.3)  # tokens keep different numbers of latents
    x, lengths = torch.randn(11, tiny.DIM, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 1, 6])
    sparse = made.reconstruct(x).latents
    dense = to_dense(sparse).detach()
    parts = dense.split(lengths.tolist())
    expected = {"mean": [p.mean(0) for p in parts], "max": [p.amax(0) for p in parts], "last": [p[-1] for p in parts]}
    for given in (sparse, dense):
        assert torch.allclose(pool_rows(given, lengths, pooling), torch.stack(expected[pooling]), atol=1e-6)


def test_long_texts_are_cut_at_the_side_that_the_pooling_says():
    traced = model()
    words = loud_words(traced, 2)
    dictionary = speller(traced, words)
    filler = " w0" * 70  # the model reads 64 tokens
    texts = texts_with(words, 40, 0, longest=4)
    rows = [(text + filler + f" {words[n % 2]}", n % 2) for n, text in enumerate(texts)]
    last = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(pooling="last"))
    assert by_name(last.tasks[0].scores)["d", 1].metrics["auc"] == 1
    assert last.tasks[0].n_cut == last.tasks[0].n_train + last.tasks[0].n_test
    start = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK)
    assert by_name(start.tasks[0].scores)["d", 1].metrics["auc"] == 0.5  # the words are not read


@pytest.mark.parametrize("n", [8, 18, 100])
def test_figures_of_few_texts_are_warned_of_and_their_intervals_are_within_their_range(n, caplog):
    """Each is told, also where every resample of the texts has the same figure, or lacks a class."""
    traced, dictionary, rows = planted(n)
    found = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(n_resamples=200, ks=(1, 2)))
    (task,) = found.tasks
    few = f"is tested on {task.n_test} texts"
    assert (few in caplog.text) == (task.n_test < 20)
    shown = RENDERERS["markdown"]({"downstream": {"probing": found}})
    assert (few in shown) == (task.n_test < 20)
    for one in [*task.scores, *found.means]:
        for name in ("auc", "accuracy", "balanced_accuracy", "f1"):
            if one.role == "majority":
                continue
            bar, value = one.errors[name], one.metrics[name]
            assert 0 <= bar.low <= value <= bar.high <= 1 and bar.standard_error > 0, (one.name, name)
            if value == 1:
                assert bar.low < 1 - 1 / (task.n_test + 1)


def test_few_texts_and_large_k():
    traced, dictionary, rows = planted(8)
    found = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(ks=(1, 32, 33, 1000)))
    ks = {one.k for one in found.tasks[0].scores if one.name == "d"}
    assert ks == {1, 32}  # the dictionary has 32 latents
    assert all(math.isfinite(value) for one in found.tasks[0].scores for value in one.metrics.values())


def test_without_resamples_there_is_no_error_bar():
    traced, dictionary, rows = planted(40)
    report = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(n_resamples=0, baselines=()))
    assert [one.name for one in report.tasks[0].scores] == ["d", "d"]
    assert all(one.errors is None for one in report.tasks[0].scores)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"ks": ()}, "ks"), ({"ks": (0,)}, "ks"), ({"strengths": ()}, "strengths"), ({"strengths": (-1.0,)}, "strengths"),
     ({"ranking": "nosuch"}, "nosuch"), ({"baselines": ("nosuch",)}, "nosuch")],
)  # fmt: skip
def test_wrong_settings_are_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        QUICK.replace(**changed)


def test_texts_without_tokens_and_one_class_are_refused():
    traced, dictionary, rows = planted(40)
    with pytest.raises(DataError, match="special"):
        probe_latents(
            traced, Candidate("d", dictionary, SITE), [(f"</s>{' </s>' * n}", n % 2) for n in range(40)], QUICK
        )
    with pytest.raises(DataError, match="two classes"):
        probe_latents(traced, Candidate("d", dictionary, SITE), [(text, 1) for text, _ in rows], QUICK)
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ConfigError, match="tasks=7"):
            probe_latents(traced, Candidate("d", dictionary, SITE), 7, QUICK)
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def test_records_are_frozen():
    traced, dictionary, rows = planted(40)
    report = probe_latents(traced, Candidate("d", dictionary, SITE), rows, QUICK.replace(n_resamples=0, baselines=()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tasks[0].name = "b"


def test_a_dictionary_may_have_the_name_of_a_baseline():
    traced, dictionary, rows = planted(40)
    other = AutoEncoderTopK(tiny.DIM, 24, 4)
    candidates = [
        Candidate("d", dictionary, SITE),
        Candidate("random like d", other, SITE),
        Candidate("PCA", other, SITE),
    ]
    report = probe_latents(traced, candidates, rows, QUICK.replace(n_resamples=0))
    found = [(one.name, one.role) for one in report.tasks[0].scores if one.k == 1]
    assert len(found) == len(set(found)) == 8
    (own,) = [one for one in report.tasks[0].scores if (one.name, one.role, one.k) == ("d", "dictionary", 1)]
    assert own.metrics["auc"] == 1
