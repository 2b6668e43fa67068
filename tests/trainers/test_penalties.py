"""Penalties: their values by hand, in dense and sparse form alike, and their gradients."""

import functools
import math

import pytest
import torch
from torch import Tensor

from dictionary_learning.dictionaries import AutoEncoder, HeadAutoencoders, JumpReluAutoEncoder
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.trainers._penalties import PENALTIES, Sparsity, powers

DENSE = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.5, 0.0]], dtype=torch.float64)
NORMS = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
ON_VALUES = {"l1": {}, "lp": {"lp_norm": 0.5}, "lp_root": {"lp_norm": 0.5}, "tanh": {"tanh_scale": 0.7}, "entropy": {}}
ON_NUMBERS = {"l0": {}, "quadratic_l0": {"target_l0": 3.0}, "target_l0": {"target_l0": 3.0}}
FORMS = ["dense", "even", "ragged"]


def entropy(*values: float) -> float:
    return -sum(v / sum(values) * math.log(v / sum(values)) for v in values)


WITH_NORMS = {
    "l1": (4 + 1 + 3 + 0.25) / 3,
    "lp": (2 + 1 + math.sqrt(3) + 0.5) / 3,
    "lp_root": (3**2 + (math.sqrt(3) + 0.5) ** 2) / 3,
    "tanh": sum(math.tanh(0.7 * v) for v in (4, 1, 3, 0.25)) / 3,
    "entropy": (entropy(4, 1) + entropy(3, 0.25)) / 3,
    "l0": 4 / 3,
    "quadratic_l0": 2 / 3 * (1 + 9 + 1) / 3,
    "target_l0": (4 / 3 / 3 - 1) ** 2,
}
WITHOUT_NORMS = {
    "l1": (2 + 1 + 3 + 0.5) / 3,
    "lp": (math.sqrt(2) + 1 + math.sqrt(3) + math.sqrt(0.5)) / 3,
    "lp_root": ((math.sqrt(2) + 1) ** 2 + (math.sqrt(3) + math.sqrt(0.5)) ** 2) / 3,
    "tanh": sum(math.tanh(0.7 * v) for v in (2, 1, 3, 0.5)) / 3,
    "entropy": (entropy(2, 1) + entropy(3, 0.5)) / 3,
}


def formed(dense: Tensor, form: str) -> Latents:
    """Returns latents in a form: all of each token in another order for `even`, only those that are not zero for `ragged`."""
    if form == "dense":
        return dense
    if form == "even":
        order = torch.tensor([2, 0, 3, 1]).expand(len(dense), -1)
        return SparseLatents(dense.gather(1, order), Support(order, 4))
    places = dense.nonzero()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    return SparseLatents(dense[places[:, 0], places[:, 1]], Support(places[:, 1], 4, offsets))


def dictionary() -> JumpReluAutoEncoder:
    return JumpReluAutoEncoder(6, 4, initial_threshold=0.4, bandwidth=0.5)


def penalty(name: str, latents: Latents, norms: Tensor | None = None) -> Tensor:
    return PENALTIES[name](Sparsity(dictionary(), latents, latents, norms), **ON_VALUES.get(name, ON_NUMBERS.get(name)))


def test_every_penalty_is_tested():
    assert {name for name, _ in PENALTIES.items()} == {*ON_VALUES, *ON_NUMBERS} == set(WITH_NORMS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(WITH_NORMS))
def test_values_by_hand(name, form):
    latents = formed(DENSE, form)
    assert torch.equal(to_dense(latents), DENSE)
    assert penalty(name, latents, NORMS).item() == pytest.approx(WITH_NORMS[name], rel=1e-6)
    plain = WITHOUT_NORMS.get(name, WITH_NORMS[name])  # numbers of latents have no norms
    assert penalty(name, latents).item() == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(ON_VALUES))
def test_gradients_are_finite_differences(name, form):
    generator = torch.Generator().manual_seed(3)
    dense = (0.1 + torch.rand(5, 4, generator=generator, dtype=torch.float64)) * (DENSE.repeat(2, 1)[:5] != 0)
    places = dense.nonzero(as_tuple=True)

    def function(values: Tensor, norms: Tensor) -> Tensor:
        return penalty(name, formed(torch.zeros_like(dense).index_put(places, values), form), norms)

    values, norms = dense[places].clone().requires_grad_(), NORMS.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (values, norms))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e30])
@pytest.mark.parametrize("name", list(ON_VALUES))
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_gradients_are_finite_at_zero_and_at_any_size(name, size, form, p):
    if name == "lp_root" and size == 1e30 and p < 1:
        size = 1e8  # a sum to the power 1 / p is beyond float32
    options = {"lp_norm": p} if name.startswith("lp") else ON_VALUES[name]
    values = (DENSE.float() * size).requires_grad_()
    loss = PENALTIES[name](Sparsity(dictionary(), formed(values, form), values, None), **options)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert values.grad.isfinite().all() and not values.grad[1].isnan().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(ON_NUMBERS))
def test_thresholds_learn_from_pre_activations_near_them(name, form):
    """With L0 a token's sum of 1[pre > t], d L0 / d t = -K((pre - t) / bandwidth) / bandwidth: 2 where |pre - t| < 1/4."""
    built = dictionary()
    pre = DENSE.float()  # only 0.5, of latent 2, is near its threshold of 0.4
    penalty_of = functools.partial(PENALTIES[name], **ON_NUMBERS[name])
    penalty_of(Sparsity(built, pre, formed(pre, form), None)).backward()
    outer = {"l0": 1 / 3, "quadratic_l0": 2 / 3 / 3 * 2 * (2 - 3), "target_l0": 2 * (4 / 9 - 1) / 3 / 3}[name]
    torch.testing.assert_close(built.threshold.grad, torch.tensor([0, 0, -2.0 * outer, 0]))


def test_numbers_of_latents_need_thresholds_that_learn():
    sparsity = Sparsity(AutoEncoder(6, 4), DENSE, DENSE, None)
    for name, options in ON_NUMBERS.items():
        with pytest.raises(ConfigError, match="no gradient through ReLU"):
            PENALTIES[name](sparsity, **options)


def test_numbers_of_latents_of_several_parts_are_added():
    built = HeadAutoencoders(6, 20, {"name": "jump_relu", "initial_threshold": 0.3, "bandwidth": 0.1}, n_heads=2)
    x = torch.randn(7, 6)
    latents, pre = built.encode_latents(x)
    found = PENALTIES["l0"](Sparsity(built, latents, pre, None))
    assert found.item() == pytest.approx(float((to_dense(latents) > 0).sum(1).float().mean()))


def test_entropy_does_not_depend_on_scale_and_is_largest_where_all_are_equal():
    assert penalty("entropy", DENSE * 50).item() == pytest.approx(float(penalty("entropy", DENSE)))
    assert penalty("entropy", torch.full((2, 4), 3.0)).item() == pytest.approx(math.log(4))
    assert penalty("entropy", torch.eye(4)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("p", [0.5, 2.0])
def test_powers_leave_zeros_at_zero(p):
    assert torch.equal(to_dense(powers(DENSE, p)) == 0, DENSE == 0)
    torch.testing.assert_close(powers(DENSE, p), DENSE**p)
