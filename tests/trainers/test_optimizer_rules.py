"""Signum, schedule-free training and Muon are what their papers say."""

import copy

import pytest
import torch

from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._optimizers import Signum, build_optimizer
from dictionary_learning.trainers._schedule_free import ScheduleFree
from tests.trainers.optimizer_cases import go, groups, parameters, same_bits


class TestSignum:
    def test_moves_by_the_sign_of_the_mean(self):
        p = torch.nn.Parameter(torch.zeros(3))
        optimizer = Signum([p], lr=0.5, momentum=0.5)
        for gradient in ([1.0, -1.0, 0.0], [-1.5, -1.0, 0.0], [-1.5, 0.1, 0.0]):
            p.grad = torch.tensor(gradient)
            optimizer.step()
        # means: 0.5, -0.5, 0; then -0.5, -0.75, 0; then -1, -0.325, 0
        assert p.tolist() == [0.5, 1.5, 0.0]

    def test_without_momentum_has_no_state(self):
        p = torch.nn.Parameter(torch.zeros(3))
        optimizer = Signum([p], momentum=0.0)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
        p.grad = torch.tensor([3.0, -1e-9, 0.0])
        optimizer.step()
        assert p.tolist() == [-0.5, 0.5, 0.0] and not optimizer.state

    def test_settings_that_cannot_be_used_are_refused(self):
        with pytest.raises(ConfigError, match="momentum=1"):
            Signum(parameters(), momentum=1.0)


class TestScheduleFree:
    @staticmethod
    def quadratic(beta: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last gradient's point and the average, after steps with noisy gradients of |p - 1|^2 / 2."""
        p = torch.nn.Parameter(torch.zeros(50))
        optimizer = ScheduleFree(torch.optim.SGD([p], lr=0.5), beta=beta)
        for _ in range(steps):
            p.grad = p.detach() - 1 + torch.randn(50)
            optimizer.step()
        trained = p.detach().clone()
        optimizer.eval()
        return trained, p.detach().clone()

    def test_average_is_nearer_to_the_least_than_where_gradients_are_taken(self):
        trained, averaged = self.quadratic(beta=0.5, steps=400)
        assert (averaged - 1).square().mean() < 0.1 * (trained - 1).square().mean()
        assert (averaged - 1).square().mean() < 0.02

    def test_weights_are_the_points_of_the_paper(self):
        p = torch.nn.Parameter(torch.zeros(()))
        optimizer = ScheduleFree(torch.optim.SGD([p], lr=1.0), beta=0.75)
        ways = []
        for lr, gradient in ((0.5, 2.0), (1.0, -1.0), (1.0, 3.0)):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = torch.tensor(gradient)
            optimizer.step()
            ways.append((lr**2, (ways[-1][1] if ways else 0.0) - lr * gradient))
        x = sum(weight * z for weight, z in ways) / sum(weight for weight, _ in ways)
        assert float(p.detach()) == pytest.approx(0.75 * x + 0.25 * ways[-1][1])
        optimizer.eval()
        assert float(p.detach()) == pytest.approx(x)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", ["signum_schedule_free", "adam_schedule_free"])
    def test_going_to_the_average_and_back_changes_no_bit(self, name, dtype):
        params, whole = parameters(dtype), parameters(dtype)
        a, b = (build_optimizer(name, groups(p), lr=1e-2) for p in (params, whole))
        a.eval()
        a.train()
        go(a, params, range(4))
        there = [p.detach().clone() for p in params]
        a.eval()
        assert not same_bits(params, there)
        a.train()
        assert same_bits(params, there)
        go(a, params, range(4, 6))
        go(b, whole, range(6))
        assert same_bits(params, whole)

    def test_state_saved_at_the_average_goes_on_from_there(self):
        params = parameters()
        optimizer = build_optimizer("signum_schedule_free", groups(params), lr=1e-2)
        go(optimizer, params, range(3))
        optimizer.eval()
        again = [torch.nn.Parameter(torch.zeros_like(p)) for p in params]
        other = build_optimizer("signum_schedule_free", groups(again), lr=1e-2)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert same_bits(again, params)
        optimizer.train()
        other.train()
        go(optimizer, params, range(3, 5))
        go(other, again, range(3, 5))
        assert same_bits(again, params)

    def test_step_at_the_average_is_refused(self):
        params = parameters()
        optimizer = build_optimizer("adam_schedule_free", groups(params))
        go(optimizer, params, [0])
        optimizer.eval()
        with pytest.raises(ConfigError, match="train\\(\\)"):
            go(optimizer, params, [1])

    def test_first_step_without_learning_rate_divides_by_nothing(self):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = ScheduleFree(torch.optim.SGD([p], lr=0.0))
        p.grad = torch.ones(2)
        optimizer.step()
        assert p.tolist() == [1, 1]

    def test_share_that_cannot_be_is_refused(self):
        with pytest.raises(ConfigError, match="beta=1"):
            ScheduleFree(torch.optim.SGD(parameters()), beta=1.0)


class TestMuon:
    def test_matrices_and_others_have_optimizers_of_their_own(self):
        params = parameters()
        optimizer = build_optimizer("muon", groups(params))
        kinds = [type(part).__name__ for part in optimizer.inner.optimizers]
        assert kinds == ["Muon", "Adam"]
        parts = optimizer.inner.optimizers
        held = [[p.ndim for group in part.param_groups for p in group["params"]] for part in parts]
        assert held == [[2, 2, 2], [1]]
        assert [group.get("lr_factor", 1.0) for group in optimizer.param_groups] == [2.0, 1.0, 1.0]

    def test_steps_are_as_large_as_adams(self):
        weight = torch.nn.Parameter(torch.zeros(64, 16))
        optimizer = build_optimizer("muon", [{"params": [weight]}], lr=1e-2)
        weight.grad = torch.randn(64, 16)
        optimizer.step()
        # 0.2 of the learning rate is the size of a step of Adam; singular values are made 1 to within a half only
        assert 0.5 * 0.2e-2 < weight.detach().square().mean().sqrt() < 1.5 * 0.2e-2

    def test_only_biases_will_do(self):
        bias = torch.nn.Parameter(torch.zeros(3))
        optimizer = build_optimizer("muon", [{"params": [bias]}], lr=1e-2)
        go(optimizer, [bias], [0])
        assert bias.abs().min() > 0

    def test_older_pytorch_is_told_what_to_do(self, monkeypatch):
        monkeypatch.delattr(torch.optim, "Muon")
        with pytest.raises(ConfigError, match="2.9 or later"):
            build_optimizer("muon", groups(parameters()))
