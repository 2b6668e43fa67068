import pytest
import torch

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
