"""What dictionaries share on the same activations: finite tokens, and one product."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.ops import _joint as joint
from dictionary_learning.ops._joint import replace_nonfinite


def test_finite_batch_is_returned_as_it_is():
    x = torch.randn(5, 3)
    same, n = replace_nonfinite(x)
    assert same is x and n == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_each_token_gives_way_to_the_last_finite_one_before(bad):
    x = torch.arange(6.0).unsqueeze(1).repeat(1, 2)
    x[[0, 2, 3], 1] = bad
    replaced, n = replace_nonfinite(x)
    assert n == 3
    assert replaced[:, 0].tolist() == [1, 1, 1, 1, 4, 5]  # the first has none before it


def test_opposite_infinities_do_not_hide_each_other():
    x = torch.zeros(2, 2)
    x[1] = torch.tensor([torch.inf, -torch.inf])
    assert replace_nonfinite(x)[1] == 1


def test_no_finite_token_leaves_all():
    x = torch.full((3, 2), torch.nan)
    replaced, n = replace_nonfinite(x)
    assert n == 3 and replaced.isnan().all()


def test_empty_batch_stays_empty():
    replaced, n = replace_nonfinite(torch.zeros(0, 4))
    assert replaced.shape == (0, 4) and n == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_of_low_precision_count_as_finite(dtype):
    """Their sum passes float16's largest number."""
    assert replace_nonfinite(torch.full((2, 1000), 60_000.0, dtype=dtype))[1] == 0


def test_a_shared_product_is_used_for_its_own_activations_and_weights_only(monkeypatch):
    """Not for other tensors of the same shape, not even at the same address."""
    monkeypatch.setattr(joint, "is_worthwhile", lambda x, encoders: True)
    x = torch.randn(9, 12)
    x[3, 2] = torch.nan
    encoders = [ops.Encoder(torch.randn(f, 12), torch.randn(f), torch.randn(12)) for f in (30, 40)]
    W = encoders[1].W
    with joint.shared_product(x, encoders):
        given, n_replaced = joint.replace_nonfinite(x)
        assert n_replaced == 1 and joint.replace_nonfinite(x)[0] is given
        expected = encoders[1].centered(given) @ W.T + encoders[1].b
        product = joint.product_for(given, W)
        torch.testing.assert_close(product.float(), expected, rtol=0.05, atol=0.1)
        others = (x, given.clone(), given.view(9, 12), joint.replace_nonfinite(x.clone())[0], given[:4])
        assert all(joint.product_for(other, W) is None for other in others)
        assert joint.product_for(given, W.detach()) is None
    assert joint.product_for(given, W) is None
