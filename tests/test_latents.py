import torch

from dictionary_learning.latents import SparseLatents, Support, fired, firing_counts, l0, to_dense


def example() -> SparseLatents:
    values = torch.tensor([[2.0, 1.0], [3.0, 0.0], [1.0, 0.5]])
    return SparseLatents(values, Support(torch.tensor([[4, 1], [1, 0], [1, 4]]), 6))


def test_dense_holds_the_values_at_their_places():
    dense = to_dense(example())
    assert dense.tolist() == [[0, 1, 0, 0, 2, 0], [0, 3, 0, 0, 0, 0], [0, 1, 0, 0, 0.5, 0]]


def test_both_forms_have_the_same_counts():
    sparse, dense = example(), to_dense(example())
    assert firing_counts(sparse).tolist() == firing_counts(dense).tolist() == [0, 3, 0, 0, 2, 0]
    assert l0(sparse) == l0(dense) == 5 / 3


def test_a_latent_kept_at_zero_did_not_fire():
    assert not fired(example())[0]


def test_segments_hold_each_pair_under_its_latent():
    segments = example().support.segments
    pairs = {
        latent: segments.tokens[segments.offsets[latent] : segments.offsets[latent + 1]].tolist() for latent in range(6)
    }
    assert pairs == {0: [1], 1: [0, 1, 2], 2: [], 3: [], 4: [0, 2], 5: []}
