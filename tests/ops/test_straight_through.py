"""Estimated gradients are the formula, term by term, and what they estimate."""

import math
from typing import get_args

import pytest
import torch

from dictionary_learning.dictionaries import SparseAutoencoder
from dictionary_learning.dictionaries.nonlinearities import JumpReLU
from dictionary_learning.latents import to_dense
from dictionary_learning.ops._straight_through import REACH, KernelName, jump, kernel, step

KERNELS = get_args(KernelName)


def height(name: str, u: float) -> float:
    """K(u), written out."""
    if abs(u) >= REACH[name]:
        return 0.0
    return {
        "rectangle": 1.0,
        "triangle": 1 - abs(u),
        "epanechnikov": 0.75 * (1 - u * u),
        "gaussian": math.exp(-u * u / 2) / math.sqrt(2 * math.pi),
    }[name]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_integrate_to_one_and_end_where_they_say(name):
    u = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    found = kernel(u, name)
    assert float(torch.trapezoid(found, u)) == pytest.approx(1, abs=1e-3)
    assert not found[u.abs() > REACH[name] + 1e-9].any() and found[u.abs() < REACH[name] - 1e-3].all()
    for i in range(0, len(u), 5003):
        assert float(found[i]) == pytest.approx(height(name, float(u[i])), abs=1e-12)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_the_formula_by_brute_force(name, to_input):
    bandwidth = 0.7
    z = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    threshold = (0.1 + torch.rand(6, dtype=torch.float64)).requires_grad_()
    g = torch.randn(40, 6, dtype=torch.float64)
    jumped, stepped = jump(z, threshold, bandwidth, name, to_input), step(z, threshold, bandwidth, name, to_input)
    ours_jump = torch.autograd.grad((jumped * g).sum(), [z, threshold])
    ours_step = torch.autograd.grad((stepped * g).sum(), [z, threshold], allow_unused=True)
    expected = {key: torch.zeros_like(t) for key, t in (("jz", z), ("jt", threshold), ("sz", z), ("st", threshold))}
    for n in range(40):
        for i in range(6):
            value, theta = float(z[n, i].detach()), float(threshold[i].detach())
            fires = value > theta
            assert float(jumped[n, i].detach()) == (value if fires else 0) and float(stepped[n, i].detach()) == fires
            near = height(name, (value - theta) / bandwidth) / bandwidth * float(g[n, i])
            expected["jt"][i] -= theta * near
            expected["st"][i] -= near
            expected["jz"][n, i] = float(g[n, i]) * fires + to_input * theta * near
            expected["sz"][n, i] = to_input * near
    torch.testing.assert_close(ours_jump, (expected["jz"], expected["jt"]))
    torch.testing.assert_close(ours_step[1], expected["st"])
    if to_input:
        torch.testing.assert_close(ours_step[0], expected["sz"])
    else:
        assert ours_step[0] is None


@pytest.mark.parametrize("name", KERNELS)
def test_estimates_are_the_slopes_of_the_means(name):
    """Over many z, d E[1[z > t]] / dt and d E[z 1[z > t]] / dt are minus the density at t, and t times that."""
    z = torch.linspace(-3, 3, 60_001, dtype=torch.float64)  # uniform: density 1/6
    threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    for estimate, expected in ((step, -1 / 6), (jump, -0.8 / 6)):
        (slope,) = torch.autograd.grad(estimate(z, threshold, 0.3, name).mean(), threshold)
        assert float(slope) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_all_that_has_a_gradient_is_chosen(name, to_input):
    """The sparse form leaves out no pre-activation from which a threshold learns, below the threshold neither."""
    nonlinearity = JumpReLU(0.3, 0.2, name, to_input)
    built = SparseAutoencoder(6, 400, nonlinearity)
    with torch.no_grad():
        built.b_enc.fill_(-1.5)
        built.nonlinearity.threshold.add_(torch.rand(400))
    x = torch.randn(30, 6)
    latents, pre = built.encode_latents(x)
    dense = built.pre_activations(x)
    weights = torch.randn(30, 400)
    wanted = [built.W_enc, built.b_enc, built.nonlinearity.threshold]
    losses = [
        ((to_dense(latents) + to_dense(built.pointwise("fires", pre))) * weights).sum(),
        ((nonlinearity.activate(dense) + nonlinearity.fires(dense)) * weights).sum(),
    ]
    ours, theirs = (torch.autograd.grad(loss, wanted) for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
