"""Dictionaries nested by frequency: the loss and its gradients by brute force, and the order of the latents."""

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense
from dictionary_learning.synthetic import SyntheticActivations, SyntheticConfig
from dictionary_learning.synthetic._score import ground_truths
from dictionary_learning.trainers import NestedByFrequencyTrainer
from dictionary_learning.trainers._batch import Batch

DIM, SIZE = 8, 16


def trainer(**settings):
    config = NestedByFrequencyTrainer.Config(k=3, dict_size=SIZE, inner_shares=(0.25, 0.5), **settings)
    built = config.build(activation_dim=DIM, steps=20, device="cpu")
    built.initialize(rows(64))
    return built


def rows(n, seed=0):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def place(built, frequencies):
    built.firing.frequencies.copy_(torch.tensor(frequencies))


def brute_force(built, x, weight):
    """Returns the loss from dense latents, a loop over prefixes, and a loop over latents."""
    d = built.dictionary
    latents = to_dense(d.encode_sparse(x))
    order = built.firing.frequencies.argsort(descending=True, stable=True).tolist()
    total = (d.b_dec + latents @ d.W_dec - x).pow(2).sum(-1).mean()
    start = torch.zeros_like(x)
    for begin, end in ((0, 4), (4, 8)):
        own = sum(latents[:, i : i + 1] * d.W_dec[i] for i in order[begin:end])
        total = total + weight * (d.b_dec + start.detach() + own - x).pow(2).sum(-1).mean()
        start = start + own
    return built.error_scale * total


def test_loss_and_gradients_equal_brute_force():
    built, x = trainer(inner_weight=0.5), rows(32, 1)
    place(built, torch.rand(SIZE, generator=torch.Generator().manual_seed(2)).tolist())
    loss = built.objective(Batch(x, x)).total
    expected = brute_force(built, x, 0.5)
    parameters = dict(built.dictionary.named_parameters())
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(parameters.values()))
    meant = torch.autograd.grad(expected, list(parameters.values()))
    for name, one, other in zip(parameters, found, meant, strict=True):
        # sums of 32 rows in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_of_a_prefix_trains_its_own_latents_alone():
    built, x = trainer(), rows(64, 1)
    frequencies = torch.linspace(1, 0, SIZE).roll(5)
    place(built, frequencies.tolist())
    places = built.firing.places
    for n, own in ((1, (places < 4)), (2, (places >= 4) & (places < 8))):
        prefix = built.objective(Batch(x, x)).terms[f"prefix_{n}_loss"]
        (gradient,) = torch.autograd.grad(prefix, built.dictionary.W_dec)
        moved = gradient.abs().sum(1) > 0
        assert moved.any() and not (moved & ~own).any()


def test_frequencies_are_the_moving_average_of_firing():
    built = trainer(frequency_decay=0.5)
    expected = torch.zeros(SIZE)
    for step in range(4):
        x = rows(32, step)
        fired = (to_dense(built.dictionary.encode_sparse(x)) > 0).float().mean(0)
        weight = max(0.5, 1 / (step + 1))
        expected = (1 - weight) * expected + weight * fired
        built.update(step, x)
        torch.testing.assert_close(built.firing.frequencies, expected)
    assert built.firing.frequencies[built.firing.places.argsort()].diff().le(0).all()


def test_without_inner_weight_it_is_batch_top_k():
    built, x = trainer(inner_weight=0.0), rows(32, 1)
    d = built.dictionary
    plain = (d.decode_latents(d.encode_sparse(x), x) - x).pow(2).sum(-1).mean()
    torch.testing.assert_close(built.objective(Batch(x, x)).total, built.error_scale * plain)


@pytest.mark.parametrize("shares", [(), (0.5, 0.25), (0.25, 0.25), (0.0, 0.5), (0.5, 1.0)])
def test_shares_that_do_not_increase_below_1_are_refused(shares):
    with pytest.raises(ConfigError, match="inner_shares"):
        NestedByFrequencyTrainer.Config(k=3, inner_shares=shares)


def test_wirings_of_several_coders_are_refused():
    with pytest.raises(ConfigError, match="heads"):
        NestedByFrequencyTrainer.Config(k=3, wiring="heads", n_heads=2)


def test_it_finds_known_features_more_purely_than_batch_top_k():
    features = SyntheticConfig(
        n_features=256, activation_dim=32, n_roots=2, min_probability=0.01, correlation_rank=4, batch_size=256
    )
    known = SyntheticActivations(features)
    configs = [{"trainer": name, "k": 4, "dict_size": 64} for name in ("batch_top_k", "nested_by_frequency")]
    found = ground_truths(trainSAE(known, configs, 150, progress=False, device="cpu"), known, n_tokens=2000)
    plain, nested = found
    assert nested.f1 > plain.f1 + 0.05 and nested.mcc > plain.mcc, found
