import pytest
import torch

from dictionary_learning.latents import (
    SparseLatents,
    Support,
    concat_latents,
    firing_counts,
    gather_per_latent,
    grouped,
    l0,
    replace_values,
    slice_latents,
    to_dense,
    top_k_of,
)


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
    assert firing_counts(example())[0] == 0


def test_segments_hold_each_pair_under_its_latent():
    segments = example().support.segments
    pairs = {
        latent: segments.tokens[segments.offsets[latent] : segments.offsets[latent + 1]].tolist() for latent in range(6)
    }
    assert pairs == {0: [1], 1: [0, 1, 2], 2: [], 3: [], 4: [0, 2], 5: []}


def ragged(seed: int = 0, n_tokens: int = 9, dict_size: int = 12) -> SparseLatents:
    """Returns latents of which some tokens have none."""
    dense = torch.randn(n_tokens, dict_size, generator=torch.Generator().manual_seed(seed))
    dense = dense * (dense > 0.8)
    places = dense.nonzero()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    return SparseLatents(dense[dense != 0], Support(places[:, 1], dict_size, offsets))


def even(seed: int = 0, n_tokens: int = 9, dict_size: int = 12) -> SparseLatents:
    """Returns latents with four of each token, in no order."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(n_tokens, dict_size, generator=generator).argsort(-1)[:, :4]
    return SparseLatents(torch.rand(n_tokens, 4, generator=generator), Support(indices, dict_size))


BOTH = pytest.mark.parametrize("made", [ragged, even])


@BOTH
@pytest.mark.parametrize("ends", [[12], [1, 12], [3, 4, 11, 12], [5, 5, 12]])
def test_grouped_has_a_row_for_each_token_and_group(made, ends):
    latents = made()
    rows = to_dense(grouped(latents, torch.tensor(ends))).view(9, len(ends), 12)
    dense = to_dense(latents)
    for group, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        expected = torch.zeros(9, 12)
        expected[:, start:end] = dense[:, start:end]
        assert torch.equal(rows[:, group], expected)


@BOTH
@pytest.mark.parametrize(("start", "stop"), [(0, 12), (0, 5), (3, 9), (11, 12), (4, 4)])
def test_between_has_the_columns_of_a_stretch(made, start, stop):
    latents = made()
    found = slice_latents(latents, start, stop)
    assert found.dict_size == stop - start and found.support.n_tokens == 9
    assert torch.equal(to_dense(found), to_dense(latents)[:, start:stop])


@pytest.mark.parametrize("kinds", [(even, even), (ragged, ragged), (even, ragged), (ragged, even, ragged), (ragged,)])
def test_joined_stand_side_by_side(kinds):
    parts = [made(seed, 9, 12 + seed) for seed, made in enumerate(kinds)]
    whole = concat_latents(parts)
    assert torch.equal(to_dense(whole), torch.cat([to_dense(part) for part in parts], dim=1))
    assert whole.support.is_ragged == any(part.support.is_ragged for part in parts)
    assert (whole.support.tokens.diff() >= 0).all()  # pairs stand token by token, as every support's do
    start = 0
    for part in parts:
        assert torch.equal(to_dense(slice_latents(whole, start, start + part.dict_size)), to_dense(part))
        start += part.dict_size


@BOTH
def test_no_token_and_no_latent(made):
    empty = made(n_tokens=0) if made is even else SparseLatents(torch.zeros(0), slice_latents(ragged(), 4, 4).support)
    n = empty.support.n_tokens
    assert to_dense(grouped(empty, torch.tensor([empty.dict_size]))).shape == (n, empty.dict_size)
    assert to_dense(concat_latents([empty, empty])).shape == (n, 2 * empty.dict_size)
    assert to_dense(slice_latents(empty, 0, empty.dict_size)).shape == (n, empty.dict_size)


@BOTH
def test_parts_pass_gradients_to_their_places(made):
    latents = made()
    values = latents.values.clone().requires_grad_()
    weights = torch.randn(9, 12)
    whole = SparseLatents(values, latents.support)
    (expected,) = torch.autograd.grad((to_dense(whole) * weights).sum(), values)
    rows = to_dense(grouped(whole, torch.tensor([4, 12]))).view(9, 2, 12)
    parts = concat_latents([slice_latents(whole, 0, 4), slice_latents(whole, 4, 12)])
    for total in ((rows.sum(1) * weights).sum(), (to_dense(parts) * weights).sum()):
        assert torch.equal(torch.autograd.grad(total, values, retain_graph=True)[0], expected)


@BOTH
def test_weights_and_largest_of_each(made):
    latents = made()
    weights = torch.randn(12)
    weighted = replace_values(latents, latents.values * gather_per_latent(weights, latents))
    assert torch.equal(to_dense(weighted), to_dense(latents) * gather_per_latent(weights, to_dense(latents)))
    if made is even:
        values = to_dense(latents).topk(2).values
        assert torch.equal(to_dense(top_k_of(latents, 2)).topk(2).values, values)
        assert l0(top_k_of(latents, 2)) == 2
