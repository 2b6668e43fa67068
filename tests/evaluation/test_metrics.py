"""Each metric equals a brute-force value, and does not depend on how tokens fall into batches."""

import math

import pytest
import torch

from dictionary_learning import AutoEncoderTopK
from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch
from dictionary_learning.evaluation import METRICS, EvaluationBatch, ReconstructionMetric, SparsityMetric
from dictionary_learning.evaluation._fidelity import FidelityMetric, recovered
from dictionary_learning.latents import to_dense


def example(n: int = 60) -> EvaluationBatch:
    x = torch.randn(n, 8) + 2
    reconstruction = AutoEncoderTopK(8, 30, 3).reconstruct(x)
    return EvaluationBatch(x, reconstruction.outputs.detach(), to_dense(reconstruction.latents).detach())


def parts(batch: EvaluationBatch, size: int) -> list[EvaluationBatch]:
    dense = to_dense(batch.latents).detach()
    return [
        EvaluationBatch(*p) for p in zip(batch.x.split(size), batch.x_hat.split(size), dense.split(size), strict=True)
    ]


def compute(metric, batches) -> dict[str, float]:
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_reconstruction_equals_brute_force():
    batch = example()
    x, y = batch.x.double(), batch.x_hat.double()
    mean = sum(row for row in x) / len(x)
    error = sum(float((a - b).pow(2).sum()) for a, b in zip(x, y, strict=True))
    variance = sum(float((a - mean).pow(2).sum()) for a in x)
    figures = compute(ReconstructionMetric(), [batch])
    assert figures["fvu"] == pytest.approx(error / variance)
    assert figures["frac_variance_explained"] == pytest.approx(1 - error / variance)
    assert figures["mse"] == pytest.approx(error / len(x))
    assert figures["l2_loss"] == pytest.approx(
        sum(math.sqrt(float((a - b).pow(2).sum())) for a, b in zip(x, y, strict=True)) / len(x)
    )
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
    assert figures["cossim"] == pytest.approx(sum(cosines) / len(x))
    assert figures["l2_ratio"] == pytest.approx(
        sum(float(b.norm() / a.norm()) for a, b in zip(x, y, strict=True)) / len(x)
    )
    assert figures["relative_reconstruction_bias"] == pytest.approx(float((y * y).sum() / (x * y).sum()))
    assert figures["n_tokens"] == 60


def test_sparsity_equals_brute_force():
    batch = example()
    dense = to_dense(batch.latents)
    figures = compute(SparsityMetric(), [batch])
    assert figures["l0"] == pytest.approx(sum(int(v != 0) for row in dense for v in row) / 60)
    assert figures["l1_loss"] == pytest.approx(float(dense.abs().sum()) / 60, rel=1e-6)
    alive = sum(bool((dense[:, i] != 0).any()) for i in range(30))
    assert (figures["n_alive"], figures["frac_alive"]) == (alive, alive / 30)


def test_density_counts_every_latent_once():
    metric = SparsityMetric()
    latents = torch.zeros(1000, 5)
    latents[:, 0] = 1
    latents[:100, 1] = 1
    latents[0, 2] = 1
    metric.update(EvaluationBatch(torch.zeros(1000, 2), torch.zeros(1000, 2), latents))
    density = metric.density()
    assert density["n_never_fired"] == 2
    assert sum(density["counts"]) == 3
    assert density["log10_edges"][0] == -3
    assert density["log10_edges"][-1] == 0
    held = {edge: n for edge, n in zip(density["log10_edges"], density["counts"], strict=False) if n}
    assert held == {-3.0: 1, -1.0: 1, -0.25: 1}


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("size", [1, 7, 60])
def test_batches_do_not_matter(name, size):
    batch = example()
    assert compute(METRICS[name](), parts(batch, size)) == pytest.approx(compute(METRICS[name](), [batch]))


@pytest.mark.parametrize("name", list(METRICS))
def test_merged_equals_whole(name):
    batch = example()
    first, second = METRICS[name](), METRICS[name]()
    pieces = parts(batch, 13)
    compute(first, pieces[:2])
    compute(second, pieces[2:])
    assert first.merge(second).compute() == pytest.approx(compute(METRICS[name](), [batch]))


def test_predicting_the_mean_scores_one():
    x = torch.randn(100, 4) + 50
    batch = EvaluationBatch(x, x.mean(0).expand_as(x), torch.zeros(100, 3))
    assert compute(ReconstructionMetric(), [batch])["fvu"] == pytest.approx(1, abs=1e-5)


def test_zero_reconstruction_of_zero_tokens_is_finite():
    batch = EvaluationBatch(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 5))
    figures = compute(ReconstructionMetric(), [batch])
    assert figures["l2_ratio"] == 1
    assert figures["cossim"] == 0


def test_large_values_do_not_lose_the_variance():
    x = torch.randn(5000, 3).double() + 1e4
    batch = EvaluationBatch(x, x + 0.1, torch.zeros(5000, 2))
    expected = 5000 * 3 * 0.01 / float((x - x.mean(0)).pow(2).sum())
    assert compute(ReconstructionMetric(), [batch])["fvu"] == pytest.approx(expected, rel=1e-4)


def test_fidelity_equals_brute_force():
    ids = torch.randint(0, 11, (2, 6))
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[0, :2] = keep[1, 4] = False
    clean, changed = torch.randn(2, 6, 11), torch.randn(2, 6, 11)
    predictions = Predictions(clean, TokenBatch(ids, torch.ones_like(keep)), keep)
    metric = FidelityMetric()
    metric.update(predictions, changed)
    ce, kl, n = 0.0, 0.0, 0
    for row in range(2):
        for t in range(5):
            if keep[row, t] and keep[row, t + 1]:
                p, q = clean[row, t].softmax(-1), changed[row, t].softmax(-1)
                ce -= math.log(q[ids[row, t + 1]])
                kl += float((p * (p / q).log()).sum())
                n += 1
    assert (metric.n, n) == (6, 6)
    assert metric.ce == pytest.approx(ce / n, rel=1e-5)
    assert metric.kl == pytest.approx(kl / n, rel=1e-5)
    untouched = FidelityMetric()
    untouched.update(predictions, clean)
    assert untouched.kl == pytest.approx(0, abs=1e-6)


def test_divergence_is_finite_where_probabilities_underflow():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = 300.0
    other = -logits
    predictions = Predictions(
        logits,
        TokenBatch(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)),
        torch.ones(1, 2, dtype=torch.bool),
    )
    metric = FidelityMetric()
    metric.update(predictions, other)
    assert math.isfinite(metric.kl)
    assert metric.kl > 100


def test_recovered_is_one_for_the_untouched_and_zero_for_the_ablated():
    assert recovered(3.0, 3.0, 10.0) == 1
    assert recovered(3.0, 10.0, 10.0) == 0
    assert math.isnan(recovered(3.0, 3.0, 3.0)) and math.isnan(recovered(3.0, 3.5, 2.9))
