"""Dictionaries of contexts, and the nonlinearities that other packages have."""

import copy

import pytest
import torch

from dictionary_learning import load_dictionary, save_dictionary
from dictionary_learning.dictionaries import SparseAutoencoder, TemporalAutoencoder
from dictionary_learning.errors import ConfigError

X = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4))


def build(**options):
    return TemporalAutoencoder(12, 16, **{"k": 3, "n_heads": 2, "n_layers": 2, "bottleneck_factor": 4, **options})


@pytest.mark.parametrize(
    "options", [{}, {"k": None}, {"tied": False}, {"subtracts_b_dec": False, "has_output_bias": False}]
)
def test_saved_and_loaded_is_the_same(options, tmp_path):
    dictionary = build(**options)
    loaded, _ = load_dictionary(save_dictionary(dictionary, tmp_path))
    assert loaded.options() == dictionary.options()
    assert torch.equal(loaded(X), dictionary(X))


def test_output_is_of_what_is_new_and_what_is_predicted():
    dictionary = build()
    novel, predicted = dictionary.encode_with_predictions(X)
    assert (novel != 0).sum(-1).max() <= 3 and predicted.abs().sum() > 0
    torch.testing.assert_close(dictionary(X), (novel + predicted) @ dictionary.W_dec + dictionary.b_dec)
    torch.testing.assert_close(dictionary.decode(novel, X), dictionary(X))
    x_hat, latents = dictionary(X, output_features=True)
    assert torch.equal(latents, novel) and torch.equal(x_hat, dictionary(X))
    torch.testing.assert_close(dictionary.reconstruct(X[0]).outputs, dictionary(X)[0])


def test_tokens_depend_on_those_before_and_not_on_those_after():
    dictionary = build()
    later, earlier = X.clone(), X.clone()
    later[:, 4:] += 1
    earlier[:, :2] += 1
    torch.testing.assert_close(dictionary.encode(later)[:, :4], dictionary.encode(X)[:, :4])
    assert not torch.allclose(dictionary(earlier)[:, 2:], dictionary(X)[:, 2:])


def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw():
    dictionary = build()
    scaled = copy.deepcopy(dictionary)
    scaled.scale_(2.5)
    torch.testing.assert_close(scaled(2.5 * X), 2.5 * dictionary(X))
    with pytest.raises(ConfigError, match="one scale"):
        scaled.scale_(2.0, 3.0)


@pytest.mark.parametrize(
    "options", [{"n_heads": 3}, {"bottleneck_factor": 0}, {"k": 17}, {"k": 0}, {"n_layers": -1}, {"scale": 0.0}]
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ConfigError, match="TemporalAutoencoder"):
        build(**options)
    with pytest.raises(ConfigError, match="whole contexts"):
        build()(X[0, 0])


def pursued(x, W, k, threshold, stops):
    """Returns latents found one token and one round after another."""
    rows = []
    for token in x:
        rest, latents = token, torch.zeros(len(W), dtype=x.dtype)
        for _ in range(k):
            i = int((W @ rest).relu().argmax())
            value = (W[i] @ rest).relu()
            before = latents != 0
            latents = latents.index_add(0, torch.tensor([i]), value.reshape(1))
            rest = rest - value * W[i]
            if (stops and torch.equal(latents != 0, before)) or (threshold > 0 and rest.norm() < threshold):
                break
        rows.append(latents)
    return torch.stack(rows)


@pytest.mark.parametrize("threshold", [0.0, 1.2])
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_stopped_pursuit_is_what_a_loop_finds(threshold, stops, unit):
    options = {"name": "stopped_pursuit", "k": 6, "residual_threshold": threshold, "stop_on_duplicate_support": stops}
    dictionary = SparseAutoencoder(12, 40, options).double()
    if not unit:
        dictionary.W_dec.data *= 0.7
    x = 2 * X.reshape(-1, 12).double()
    expected = pursued(x - dictionary.b_dec, dictionary.W_dec, 6, threshold, stops)
    got = dictionary.encode(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((v * weights).sum(), dictionary.W_dec)[0] for v in (got, expected))
    torch.testing.assert_close(ours, theirs)
