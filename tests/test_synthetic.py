"""Activations with known features."""

import itertools
from itertools import pairwise

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, load_dictionary, trainSAE
from dictionary_learning.activations import ActivationSource
from dictionary_learning.errors import ConfigError
from dictionary_learning.synthetic import (
    SyntheticActivations,
    SyntheticConfig,
    ground_truth,
    synth_sae_bench_16k,
    synth_sae_bench_small,
)
from dictionary_learning.synthetic._data import (
    drawn_probabilities,
    effective_probabilities,
    levels,
    unit_features,
    zipf_probabilities,
)

TINY = SyntheticConfig(
    n_features=40, activation_dim=16, n_roots=2, branching=3, depth=2, correlation_rank=3, min_probability=0.1
)


def test_activations_are_their_features_and_bias():
    data = SyntheticActivations(TINY)
    x, coefficients = data.batch_with_features(50)
    torch.testing.assert_close(x, coefficients @ data.features + data.bias)


def test_source_has_the_protocol():
    data = SyntheticActivations(TINY)
    assert isinstance(data, ActivationSource)
    assert next(iter(data)).shape == (TINY.batch_size, TINY.activation_dim)
    assert list(data.widths.values()) == [TINY.activation_dim]


def test_restored_state_continues_in_the_same_bits():
    first, second = SyntheticActivations(TINY), SyntheticActivations(TINY)
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(first)), next(iter(second)))


def test_sample_takes_nothing_of_the_stream():
    first, second = SyntheticActivations(TINY), SyntheticActivations(TINY)
    assert torch.equal(first.sample(10), first.sample(10))
    assert torch.equal(next(iter(first)), next(iter(second)))


def mean_max_overlap(features):
    """Returns the mean over features of the largest |cos| with another one."""
    cosines = (features @ features.T).abs().fill_diagonal_(0)
    return float(cosines.amax(dim=1).mean())


def test_features_are_unit_and_less_alike_than_random_ones():
    random, apart = (unit_features(64, 16, steps=n, generator=torch.Generator().manual_seed(0)) for n in (0, 100))
    torch.testing.assert_close(apart.norm(dim=1), torch.ones(64))
    assert mean_max_overlap(apart) < mean_max_overlap(random)


def test_independent_features_fire_as_often_as_asked():
    config = TINY.replace(correlation_rank=0, n_roots=0)
    data, n = SyntheticActivations(config), 20_000
    rates = (data.batch_with_features(n).coefficients > 0).double().mean(dim=0)
    asked = zipf_probabilities(config)
    # five standard errors
    assert ((rates - asked).abs() < 5 * (asked * (1 - asked) / n).sqrt()).all()


def test_correlation_leaves_the_rates_of_features_as_asked():
    config = TINY.replace(correlation=0.4, n_roots=0)
    data, n = SyntheticActivations(config), 20_000
    rates = (data.batch_with_features(n).coefficients > 0).double().mean(dim=0)
    asked = zipf_probabilities(config)
    # five standard errors
    assert ((rates - asked).abs() < 5 * (asked * (1 - asked) / n).sqrt()).all()


def test_effective_probabilities_equal_brute_force():
    config = SyntheticConfig(n_features=4, activation_dim=4, n_roots=1, branching=3, depth=1, min_probability=0.2)
    asked, expected = drawn_probabilities(config), torch.zeros(4, dtype=torch.float64)
    for fired in itertools.product([0, 1], repeat=4):
        outcome = torch.tensor(fired)
        probability = torch.where(outcome > 0, asked, 1 - asked).prod()
        expected[0] += probability * fired[0]
        expected[1:] += probability * fired[0] * outcome[1:] / max(1, sum(fired[1:]))
    # the integral is summed over a grid of a thousand midpoints
    torch.testing.assert_close(effective_probabilities(config), expected, rtol=1e-5, atol=0)


def test_hierarchy_fires_as_often_as_its_effective_probabilities():
    data, n = SyntheticActivations(TINY.replace(correlation_rank=0)), 20_000
    rates = (data.batch_with_features(n).coefficients > 0).double().mean(dim=0)
    expected = data.probabilities.double()
    # five standard errors, of at least one firing
    assert ((rates - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1 / n).all()


def test_children_fire_one_at_a_time_and_only_with_their_parent():
    fired = SyntheticActivations(TINY).batch_with_features(2000).coefficients > 0
    tree = levels(TINY)
    for above, below in pairwise(tree):
        counts = fired[:, below].unflatten(1, (-1, TINY.branching)).sum(dim=-1)
        assert (counts <= fired[:, above]).all()


@pytest.mark.parametrize("changes", [{"min_probability": 0.5}, {"n_roots": 100}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError):
        TINY.replace(**changes)


def test_presets_have_the_stated_sizes():
    assert (synth_sae_bench_16k().n_features, synth_sae_bench_16k().activation_dim) == (16_384, 768)
    assert (synth_sae_bench_small().n_features, synth_sae_bench_small().activation_dim) == (1024, 96)


def test_16k_preset_has_the_published_l0():
    probabilities = effective_probabilities(synth_sae_bench_16k())
    # the paper rounds: 34 of all features, 25 of the 4096 most frequent
    assert float(probabilities.sum()) == pytest.approx(34, abs=0.6)
    assert float(probabilities.sort(descending=True).values[:4096].sum()) == pytest.approx(25, abs=0.6)


def test_stream_trains_a_dictionary_that_finds_features(tmp_path):
    config = synth_sae_bench_small().replace(
        n_features=48, activation_dim=32, batch_size=128, n_roots=0, correlation=0.0
    )
    data = SyntheticActivations(config)
    (dictionary,) = trainSAE(
        data, {"trainer": "top_k", "k": 4, "dict_size": 48}, 200, save_dir=tmp_path, progress=False
    )
    untrained = AutoEncoderTopK(32, 48, 4)
    assert ground_truth(dictionary, data, n_tokens=2000).mcc > ground_truth(untrained, data, n_tokens=2000).mcc + 0.1
    assert load_dictionary(tmp_path / "trainer_0").info.config["site"] == "synthetic:out"
