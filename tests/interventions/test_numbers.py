"""Numbers of edits: those of numpy do, and what a dtype does not hold is refused."""

import jaxtyping
import numpy as np
import pytest
import torch

from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interventions import ablate, edit_latents, put, steer

DIM = 16


@pytest.fixture
def dictionary():
    return AutoEncoderTopK(DIM, 32, k=4)


@pytest.fixture
def types_unchecked():
    """Leaves types unchecked, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("types_unchecked")
def test_numbers_of_numpy_and_tensors_of_one_number_are_numbers(dictionary):
    x = torch.randn(2, 5, DIM)
    expected = edit_latents(dictionary, clamp={3: 2.0}, ablate=[1], scale={4: 0.5})(x)
    for number in (np.float32, np.float64, torch.tensor):
        given = {"clamp": {np.int64(3): number(2.0)}, "ablate": [np.int32(1)], "scale": {4: number(0.5)}}
        assert torch.equal(edit_latents(dictionary, **given)(x), expected)


def test_values_keep_the_precision_of_a_dictionary_in_float64(dictionary):
    dictionary = dictionary.double()
    x = torch.randn(1, 3, DIM, dtype=torch.float64)
    added = edit_latents(dictionary, add={3: 0.1})(x) - x
    torch.testing.assert_close(added, (0.1 * dictionary.W_dec[3].detach()).expand_as(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_a_dtype_does_not_hold_is_refused(dictionary, dtype):
    largest = torch.finfo(dtype).max
    x = torch.zeros(1, 2, DIM, dtype=dtype)
    wide = torch.full((DIM,), 2 * largest, dtype=torch.float64)
    for edit in (
        steer(wide, 1.0),
        steer(torch.ones(DIM), 2 * largest),
        ablate(wide),
        ablate(2 * largest),
        put(wide.expand(1, 2, DIM)),
    ):
        with pytest.raises(DataError, match="does not hold"):
            edit(x)
    with pytest.raises(ConfigError, match="finite number is needed"):
        edit_latents(dictionary.to(dtype), clamp={1: 2 * largest})
    assert steer(torch.ones(DIM), largest)(x).isfinite().all()


def test_tokens_that_are_not_kept_may_have_any_value():
    value = torch.ones(2, 3, DIM)
    value[0] = torch.nan
    x, keep = torch.zeros(2, 3, DIM), torch.tensor([[0], [1]])
    assert torch.equal(put(value, keep)(x), torch.cat([x[:1], value[1:]]))
    with pytest.raises(ConfigError, match="finite real numbers"):
        put(value)
