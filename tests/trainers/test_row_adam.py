"""RowAdam is Adam with projection, clipping and renormalization around it, and nothing else."""

import copy

import pytest
import torch

from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._row_adam import RowAdam


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(700, 24, generator=generator), dim=1)
    other = torch.randn(700, 24, generator=generator)
    return [torch.nn.Parameter(t.to(dtype)) for t in (unit, other, torch.randn(24, generator=generator))]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator) for shape in ((700, 24), (700, 24), (24,))]


def groups(params: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": params[:1], "unit_rows": True, "lr": 1e-2}, {"params": params[1:], "lr": 1e-3}]


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e3])
def test_equals_the_steps_one_after_another(max_norm):
    ours, plain = parameters(), parameters()
    optimizer = RowAdam(groups(ours), betas=(0.8, 0.95), eps=1e-9, max_grad_norm=max_norm)
    adam = torch.optim.Adam(
        [{"params": plain[:1], "lr": 1e-2}, {"params": plain[1:], "lr": 1e-3}], betas=(0.8, 0.95), eps=1e-9
    )
    for step in range(5):
        for p, q, g in zip(ours, plain, gradients(step), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        with torch.no_grad():
            weight, gradient = plain[0], plain[0].grad
            gradient -= (gradient * weight).sum(1, keepdim=True) * weight
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(plain, max_norm)
            adam.step()
            weight.div_(weight.norm(dim=1, keepdim=True))
    for p, q in zip(ours, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_gradient_that_is_not_finite_changes_nothing():
    params = parameters()
    optimizer = RowAdam(groups(params), max_grad_norm=1.0)
    for step in range(2):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g
        optimizer.step()
    before = [p.detach().clone() for p in params]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    for p, g in zip(params, gradients(2), strict=True):
        p.grad = g
    params[1].grad[3, 4] = torch.nan
    optimizer.step()
    assert optimizer.n_skipped == 1
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=1e-7)  # rows may be normalized again
    for index, values in optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(values[name], state[index][name])


def test_low_precision_weights_have_a_full_one_beside_them():
    low = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    optimizer = RowAdam([low], lr=1e-5)
    for _ in range(1000):
        low.grad = torch.ones_like(low)
        optimizer.step()
    # a step of 1e-5 is lost in bfloat16 beside 1, whose neighbours are 4e-3 away; a thousand of them are not
    torch.testing.assert_close(low.float(), torch.full((4, 3), 0.99), atol=4e-3, rtol=0)
    assert low.dtype == torch.bfloat16 and optimizer.state[low]["master"].dtype == torch.float32


def test_state_goes_on_in_the_same_bits():
    def go(params, optimizer, steps):
        for step in steps:
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g
            optimizer.step()

    for dtype in (torch.float32, torch.bfloat16):
        whole, half = parameters(dtype), parameters(dtype)
        a, b = RowAdam(groups(whole)), RowAdam(groups(half))
        cast = [p.dtype for p in whole]
        assert cast == [dtype] * 3
        for params, optimizer, steps in ((whole, a, range(6)), (half, b, range(3))):
            for step in steps:
                for p, g in zip(params, gradients(step), strict=True):
                    p.grad = g.to(dtype)
                optimizer.step()
        again = [torch.nn.Parameter(p.detach().clone()) for p in half]
        c = RowAdam(groups(again))
        c.load_state_dict(copy.deepcopy(b.state_dict()))
        for step in range(3, 6):
            for p, g in zip(again, gradients(step), strict=True):
                p.grad = g.to(dtype)
            c.step()
        assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))


def test_parameters_without_gradients_stay():
    params = parameters()
    optimizer = RowAdam(groups(params))
    optimizer.step()
    params[2].grad = torch.ones(24)
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before)


def test_numbers_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match="betas=\\(1.0, 0.9\\)"):
        RowAdam(parameters(), betas=(1.0, 0.9))
    with pytest.raises(ConfigError, match="max_grad_norm=0"):
        RowAdam(parameters(), max_grad_norm=0.0)
