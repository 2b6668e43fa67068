"""How alike directions are, against loops over all pairs."""

import itertools

import pytest
import torch

from dictionary_learning import AutoEncoderTopK
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import decoder_geometry, match_dictionaries, seed_stability


def dictionary(seed: int, size: int = 6, dim: int = 5) -> AutoEncoderTopK:
    torch.manual_seed(seed)
    made = AutoEncoderTopK(dim, size, 2)
    with torch.no_grad():
        made.W_dec.copy_(torch.randn(size, dim))
    return made


def cosines(a, b):
    return [[float(torch.cosine_similarity(x, y, dim=0)) for y in b.W_dec.detach()] for x in a.W_dec.detach()]


def test_nearest_neighbors_within_a_dictionary():
    one = dictionary(0)
    with torch.no_grad():
        one.W_dec[4] = 3 * one.W_dec[1]
    table = cosines(one, one)
    largest = [max(v for j, v in enumerate(row) if j != i) for i, row in enumerate(table)]
    found = decoder_geometry(one)
    assert found.mean_max_cosine == pytest.approx(sum(largest) / 6, abs=1e-6)
    assert found.largest_cosine == pytest.approx(1) and found.frac_duplicates == pytest.approx(2 / 6)
    assert (found.n_latents, decoder_geometry(one, n_latents=3).n_latents) == (6, 3)


def test_matching_is_the_best_of_all_permutations():
    one, other = dictionary(0), dictionary(1)
    table = [[abs(v) for v in row] for row in cosines(one, other)]
    best = max(sum(table[i][j] for i, j in enumerate(order)) / 6 for order in itertools.permutations(range(6)))
    found = match_dictionaries(one, other)
    assert found.mcc == pytest.approx(best, abs=1e-6)
    assert found.mmcs == pytest.approx(sum(map(max, table)) / 6, abs=1e-6)
    assert found.mmcs_back == pytest.approx(sum(max(column) for column in zip(*table, strict=True)) / 6, abs=1e-6)


def test_a_dictionary_has_its_own_directions_in_any_order_and_sign():
    one, other = dictionary(0), dictionary(0)
    with torch.no_grad():
        other.W_dec.copy_(-2 * one.W_dec.flip(0))
    found = match_dictionaries(one, other)
    assert (found.mmcs, found.mcc, found.frac_same) == (pytest.approx(1), pytest.approx(1), 1)


def test_stability_is_the_mean_over_pairs_of_seeds():
    several = [dictionary(seed) for seed in range(3)]
    pairs = [match_dictionaries(a, b).mcc for a, b in itertools.combinations(several, 2)]
    assert seed_stability(several).mcc == pytest.approx(sum(pairs) / 3)
    with pytest.raises(ConfigError, match="give at least two"):
        seed_stability(several[:1])
    with pytest.raises(ConfigError, match="widths 5 and 4"):
        match_dictionaries(several[0], dictionary(0, dim=4))
