import pytest
import torch

from dictionary_learning.data import position_mask, real_position_mask
from dictionary_learning.errors import ConfigError

SLICES = [None, (None,), (3,), (2, None), (1, -1), (None, None, 2), (1, 7, 3), (-3, None), (0, 8, 1)]


@pytest.mark.parametrize("chosen", SLICES)
def test_mask_is_that_of_a_slice(chosen):
    expected = torch.zeros(8, dtype=torch.bool)
    expected[slice(*(chosen or (None,)))] = True
    assert torch.equal(position_mask(8, chosen), expected)


@pytest.mark.parametrize("chosen", SLICES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_moves_no_position(chosen, side):
    lengths = [8, 5, 1, 0]
    real = torch.tensor([[n < length for n in range(8)] for length in lengths])
    real = real.flip(-1) if side == "left" else real
    mask = real_position_mask(real, chosen)
    for length, row, wanted in zip(lengths, real, mask, strict=True):
        expected = torch.zeros(length, dtype=torch.bool)
        expected[slice(*(chosen or (None,)))] = True
        assert wanted[row].tolist() == expected.tolist()
        assert not wanted[~row].any()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((), "it is \\(stop,\\)"),
        ((1, 2, 3, 4), "it is \\(stop,\\)"),
        ((None, None, 0), "step"),
        ((9, None), "no position"),
    ],
)
def test_slices_that_take_nothing_are_refused(chosen, said):
    with pytest.raises(ConfigError, match=said):
        position_mask(8, chosen)
