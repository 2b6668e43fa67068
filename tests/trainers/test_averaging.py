"""The average of weights is the sum it says, and leaves the weights alone."""

import copy

import pytest
import torch

from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.trainers._averaging import WeightAverage


class Module(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.W_dec = torch.nn.Parameter(torch.randn(6, 4, dtype=dtype))
        self.b_dec = torch.nn.Parameter(torch.randn(4, dtype=dtype))
        self.register_buffer("threshold", torch.ones(()))


def walked(average: WeightAverage, steps: int) -> list[torch.Tensor]:
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for p in average.module.parameters():
                p.add_(torch.randn_like(p))
        average.update()
        seen.append(average.module.W_dec.detach().clone())
    return seen


def test_is_the_weighted_mean_of_all_steps():
    average = WeightAverage(Module(), 0.9)
    seen = torch.stack(walked(average, 15))
    weights = 0.9 ** torch.arange(14, -1, -1).float()
    expected = torch.einsum("t,tij->ij", weights / weights.sum(), seen)
    torch.testing.assert_close(average.weights()["W_dec"], expected)


def test_first_update_gives_the_weights_themselves():
    module = Module()
    average = WeightAverage(module, 0.999)
    for _ in range(3):
        average.update()
        assert torch.equal(average.weights()["b_dec"], module.b_dec)


def test_before_the_first_update_the_weights_are_as_they_are():
    module = Module()
    average = WeightAverage(module)
    with torch.no_grad():
        module.b_dec.fill_(3.0)  # as a trainer does when it sees its first batch
    with average.averaged():
        assert (module.b_dec == 3).all()


def test_averaged_weights_are_lent_and_given_back():
    module = Module()
    average = WeightAverage(module, 0.5)
    own = walked(average, 4)[-1]
    with pytest.raises(ZeroDivisionError), average.averaged() as lent:
        assert lent is module and torch.equal(module.W_dec, average.weights()["W_dec"])
        assert not torch.equal(module.W_dec, own)
        raise ZeroDivisionError
    assert torch.equal(module.W_dec, own) and module.threshold == 1


def test_rows_are_given_unit_norm_where_asked():
    average = WeightAverage(Module(), 0.5, unit_rows=["W_dec"])
    walked(average, 4)
    torch.testing.assert_close(average.weights()["W_dec"].norm(dim=1), torch.ones(6))
    assert average.weights()["b_dec"].norm() != 1


def test_low_precision_weights_are_averaged_in_full():
    module = Module(torch.bfloat16)
    average = WeightAverage(module, 0.999)
    with torch.no_grad():
        for value in [1.0] * 500 + [2.0] * 500:
            module.b_dec.fill_(value)
            average.update()
    # steps of 1e-3 toward 2 are lost in bfloat16, whose neighbours are 8e-3 apart there
    share = (1 - 0.999**500) / (1 - 0.999**1000)
    torch.testing.assert_close(average.state_dict()["averages"]["b_dec"], torch.full((4,), 1 + share))
    assert average.weights()["b_dec"].dtype == torch.bfloat16


def test_state_goes_on_in_the_same_bits():
    module = Module()
    average = WeightAverage(module, 0.9)
    walked(average, 3)
    other = WeightAverage(copy.deepcopy(module), 0.9)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    generator = torch.get_rng_state()
    walked(average, 3)
    torch.set_rng_state(generator)
    walked(other, 3)
    assert all(torch.equal(a, b) for a, b in zip(average.weights().values(), other.weights().values(), strict=True))


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match="decay=1"):
        WeightAverage(Module(), 1.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'W_dec'"):
        WeightAverage(Module(), unit_rows=["W_de"])
