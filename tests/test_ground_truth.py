"""Metrics against known features."""

import itertools

import pytest
import torch
from torch import Tensor

from dictionary_learning.dictionaries import AutoEncoder, LeaveOneOut, Normalized, SkipAutoencoder
from dictionary_learning.errors import ConfigError
from dictionary_learning.synthetic import SyntheticActivations, SyntheticConfig
from dictionary_learning.synthetic._score import ground_truth, ground_truths, matched_mean

# as many features as dimensions, and independent ones: a linear map finds them exactly
CONFIG = SyntheticConfig(n_features=12, activation_dim=12, n_roots=1, branching=2, depth=1, min_probability=0.2)


class Inverse:
    """The perfect dictionary, its latents in some order."""

    def __init__(self, data: SyntheticActivations, order: Tensor):
        self.W_dec, self.b_dec = data.features[order], data.bias
        self.inverse = torch.linalg.inv(self.W_dec)

    def encode(self, x: Tensor) -> Tensor:
        latents = (x - self.b_dec) @ self.inverse
        return latents * (latents > 1e-2)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


@pytest.mark.parametrize("order", [torch.arange(12), torch.arange(12).flip(0)], ids=["same", "permuted"])
def test_perfect_dictionary_scores_one(order):
    data = SyntheticActivations(CONFIG)
    result = ground_truth(Inverse(data, order), data, n_tokens=2000)
    for name in ("mcc", "uniqueness", "precision", "recall", "f1", "explained_variance", "shrinkage"):
        assert getattr(result, name) == pytest.approx(1, abs=1e-3), name
    assert result.dead == 0


def test_figures_equal_brute_force():
    data = SyntheticActivations(CONFIG.replace(n_features=20))
    dictionary = Inverse(SyntheticActivations(CONFIG), torch.arange(12))
    result = ground_truth(dictionary, data, n_tokens=300, batch_size=128)
    x, coefficients = (torch.cat(parts) for parts in zip(*data.held_out(300, 128), strict=True))
    latents = dictionary.encode(x)
    x_hat, active = dictionary.decode(latents), latents > 0
    best = [max(range(20), key=lambda j: abs(float(row @ data.features[j]))) for row in dictionary.W_dec]
    f1 = []
    for i, j in enumerate(best):
        both = int((active[:, i] & (coefficients[:, j] > 0)).sum())
        precision = both / max(1, int(active[:, i].sum()))
        recall = both / max(1, int((coefficients[:, j] > 0).sum()))
        f1.append(2 * precision * recall / (precision + recall) if both else 0)
    assert result.f1 == pytest.approx(sum(f1) / 12)
    assert result.uniqueness == len(set(best)) / 12
    assert result.l0 == pytest.approx(float(active.sum()) / 300)
    variance = (x - x.mean(dim=0)).double().square().sum()
    # activations are in float32
    assert result.explained_variance == pytest.approx(
        1 - float((x - x_hat).double().square().sum() / variance), rel=1e-4
    )
    assert result.shrinkage == pytest.approx(float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-4)


def test_matching_equals_brute_force():
    """Each row has a column of its own, also where two rows are nearest to the same one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        table = torch.rand(4, 6, generator=generator)
        best = (
            max(
                sum(float(table[i, c]) for i, c in enumerate(columns))
                for columns in itertools.permutations(range(6), 4)
            )
            / 4
        )
        assert matched_mean(table) == pytest.approx(best)
        assert matched_mean(table.T) == pytest.approx(best)


def test_silent_dictionary_scores_zero():
    data = SyntheticActivations(CONFIG)
    silent = Inverse(data, torch.arange(12))
    silent.inverse = torch.zeros(12, 12)
    result = ground_truth(silent, data, n_tokens=100)
    assert (result.precision, result.recall, result.f1, result.l0, result.dead) == (0, 0, 0, 0, 1)


def test_no_tokens_are_refused():
    data = SyntheticActivations(CONFIG)
    with pytest.raises(ConfigError):
        ground_truth(Inverse(data, torch.arange(12)), data, n_tokens=0)


def test_a_normalized_dictionary_is_scored_by_the_rows_inside_and_its_own_outputs():
    data = SyntheticActivations(CONFIG)
    torch.manual_seed(0)
    wrapped = Normalized(AutoEncoder(12, 24), "layer_norm")
    result = ground_truth(wrapped, data, n_tokens=300, batch_size=128)
    x = torch.cat([rows for rows, _ in data.held_out(300, 128)])
    with torch.no_grad():
        x_hat, latents = wrapped(x, output_features=True)
    assert result.l0 == pytest.approx(float((latents != 0).sum()) / 300)
    variance = (x - x.mean(dim=0)).double().square().sum()
    assert result.explained_variance == pytest.approx(
        1 - float((x - x_hat).double().square().sum() / variance), rel=1e-4
    )
    assert result.mcc == ground_truth(wrapped.dictionary, data, n_tokens=300).mcc


@pytest.mark.parametrize("refine", [lambda d: d, lambda d: LeaveOneOut(d, -1e9)], ids=["plain", "refined"])
def test_outputs_that_need_the_activations_are_scored_too(refine):
    data = SyntheticActivations(CONFIG)
    dictionary = SkipAutoencoder(data.config.activation_dim, 24, {"name": "top_k", "k": 3})
    torch.nn.init.normal_(dictionary.W_skip)
    x = torch.cat([x for x, _ in data.held_out(200, 200)])
    error, variance = (dictionary(x).detach() - x).square().sum(), (x - x.mean(0)).square().sum()
    result = ground_truth(refine(dictionary), data, n_tokens=200, batch_size=200)
    assert result.explained_variance == pytest.approx(1 - float(error / variance), rel=1e-4)


def test_a_dictionary_that_cannot_be_scored_leaves_the_others_their_figures():
    data = SyntheticActivations(CONFIG)
    perfect = Inverse(data, torch.arange(12))

    class Mute(Inverse):
        def encode(self, x):
            raise ConfigError("It does not encode.")

    wrong, right, mute = ground_truths([AutoEncoder(5, 24), perfect, Mute(data, torch.arange(12))], data, n_tokens=200)
    assert isinstance(wrong, ConfigError) and isinstance(mute, ConfigError)
    assert right == ground_truth(perfect, data, n_tokens=200)
