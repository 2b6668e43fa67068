"""Any optimizer gets what a dictionary needs around it, and its own state is left alone otherwise."""

import copy
import functools
import sys
import types

import pytest
import torch

from dictionary_learning.errors import ConfigError, MissingDependencyError, UnknownNameError
from dictionary_learning.trainers._optimizer_rows import take_rows
from dictionary_learning.trainers._optimizers import build_optimizer
from dictionary_learning.trainers._row_adam import RowAdam
from dictionary_learning.trainers._unit_norm_optimizer import UnitNormOptimizer
from tests.trainers.optimizer_cases import BUILT_HERE, go, groups, means, parameters, same_bits, tensors


class TestConstrained:
    @pytest.mark.parametrize("max_norm", [None, 1.0, 1e-3, 1e3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_adam_in_it_equals_row_adam(self, max_norm, dtype):
        ours, theirs = parameters(dtype)[:3], parameters(dtype)[:3]
        wrapped = UnitNormOptimizer(
            groups(ours), functools.partial(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-9), max_grad_norm=max_norm
        )
        adam = RowAdam(groups(theirs), betas=(0.8, 0.95), eps=1e-9, max_grad_norm=max_norm)
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            for p, q in zip(ours, theirs, strict=True):
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                q.grad = p.grad.clone()
            wrapped.step()
            adam.step()
        # weights in bfloat16 may be rounded to either neighbour, 2^-8 apart
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-3}
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **tolerance)

    def test_learning_rate_of_a_group_is_used(self):
        params = parameters()
        optimizer = UnitNormOptimizer(groups(params), functools.partial(torch.optim.SGD, lr=0.1))
        assert [group.get("lr_factor", 1.0) for group in optimizer.param_groups] == [2.0, 1.0]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        go(optimizer, params, [0])
        assert same_bits(params[1:], parameters()[1:])
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.param_groups[1]["lr"] = 0.1
        go(optimizer, params, [1])
        assert not same_bits(params[2:3], parameters()[2:3])

    def test_rows_with_more_axes_have_unit_norm_as_a_whole(self):
        weight = torch.nn.Parameter(torch.randn(6, 2, 4))
        optimizer = UnitNormOptimizer(
            [{"params": [weight], "unit_rows": True}], functools.partial(torch.optim.SGD, lr=0.1)
        )
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.ones(6))

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_weights_with_more_axes_move_as_the_inner_optimizer_says(self, memory_format):
        ours = torch.nn.Parameter(torch.randn(3, 4, 5, 6).to(memory_format=memory_format))
        theirs = torch.nn.Parameter(ours.detach().clone())
        wrapped = UnitNormOptimizer([{"params": [ours]}], functools.partial(torch.optim.SGD, lr=0.1))
        plain = torch.optim.SGD([theirs], lr=0.1)
        go(wrapped, [ours], range(2))
        go(plain, [theirs], range(2))
        assert same_bits([ours], [theirs])

    def test_low_precision_weights_have_a_full_one_in_their_place(self):
        low = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
        optimizer = UnitNormOptimizer([{"params": [low]}], functools.partial(torch.optim.SGD, lr=1e-5))
        for _ in range(1000):
            low.grad = torch.ones_like(low)
            optimizer.step()
        # a step of 1e-5 is lost in bfloat16 beside 1, whose neighbours are 4e-3 away; a thousand of them are not
        torch.testing.assert_close(low.float(), torch.full((4, 3), 0.99), atol=4e-3, rtol=0)

    def test_weights_written_from_outside_are_taken_over(self):
        low = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
        optimizer = UnitNormOptimizer([{"params": [low]}], functools.partial(torch.optim.SGD, lr=1e-4))
        go(optimizer, [low], range(3))
        with torch.no_grad():
            low[1] = 5.0
        go(optimizer, [low], range(3))
        assert (low[1] == 5).all() and (low[0] < 1.1).all()

    def test_gradients_are_removed(self):
        low = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
        other = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
        optimizer = UnitNormOptimizer([{"params": [low, other]}], functools.partial(torch.optim.SGD, lr=0.5))
        go(optimizer, [low, other], [0])
        assert low.grad is None
        before = low.detach().clone()
        other.grad = torch.ones_like(other)
        optimizer.step()
        assert torch.equal(low, before)
        optimizer.zero_grad(set_to_none=False)
        assert (other.grad == 0).all()

    def test_closure_is_called_once(self):
        params = parameters()
        optimizer = build_optimizer("signum", groups(params))

        def closure() -> float:
            total = sum(p.square().sum() for p in params)
            total.backward()
            return float(total.detach())

        assert optimizer.step(closure) == pytest.approx(float(sum(p.detach().square().sum() for p in parameters())))

    def test_nothing_happens_without_gradients(self):
        params = parameters()
        optimizer = build_optimizer("signum", groups(params))
        optimizer.step()
        assert same_bits(params, parameters()) and optimizer.n_skipped == 0

    def test_settings_that_cannot_be_used_are_refused(self):
        params = parameters()
        with pytest.raises(ConfigError, match="max_grad_norm=0"):
            build_optimizer("signum", groups(params), max_grad_norm=0.0)
        with pytest.raises(ConfigError, match="shape \\(8,\\)"):
            build_optimizer("signum", [{"params": [params[2]], "unit_rows": True}])
        with pytest.raises(ConfigError, match="returned a NoneType"):
            build_optimizer(lambda groups: None, groups(params))
        with pytest.raises(ConfigError, match="SGD holds 1 parameters"):
            build_optimizer(lambda groups: torch.optim.SGD([params[2]]), groups(params))


class TestEveryOptimizer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", BUILT_HERE)
    def test_state_goes_on_in_the_same_bits(self, name, dtype):
        whole, half = parameters(dtype)[:3], parameters(dtype)[:3]
        a, b = (build_optimizer(name, groups(params), lr=1e-2, max_grad_norm=1.0) for params in (whole, half))
        go(a, whole, range(6))
        go(b, half, range(3))
        again = [torch.nn.Parameter(p.detach().clone()) for p in half]
        c = build_optimizer(name, groups(again), lr=1e-2, max_grad_norm=1.0)
        c.load_state_dict(copy.deepcopy(b.state_dict()))
        assert same_bits(half, again)
        go(c, again, range(3, 6))
        assert same_bits(whole, again)

    @pytest.mark.parametrize("name", [name for name in BUILT_HERE if name not in ("adam", "adam_offloaded")])
    def test_gradient_that_is_not_finite_changes_nothing(self, name):
        params = parameters()
        optimizer = build_optimizer(name, groups(params), max_grad_norm=1.0)
        go(optimizer, params, range(2))
        before, state = [p.detach().clone() for p in params], tensors(optimizer.state_dict()["inner"])
        for bad in (torch.nan, torch.inf):
            for p in params:
                p.grad = torch.full_like(p, bad) if p.ndim == 1 else torch.ones_like(p)
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.n_skipped == 2
        assert same_bits(params, before) and same_bits(tensors(optimizer.state_dict()["inner"]), state)
        go(optimizer, params, [2])
        assert not torch.equal(params[0], before[0])

    @pytest.mark.parametrize("name", BUILT_HERE)
    def test_unit_rows_keep_unit_norm(self, name):
        params = parameters()[:3]
        optimizer = build_optimizer(name, groups(params), lr=0.1)
        go(optimizer, params, range(5))
        torch.testing.assert_close(params[0].norm(dim=1), torch.ones(12))
        for move in ("eval", "train"):
            getattr(optimizer, move, lambda: None)()
            torch.testing.assert_close(params[0].norm(dim=1), torch.ones(12))

    # not those by signs: what rounding leaves of the gradient is as large as any to them
    @pytest.mark.parametrize("optimizer", ["adam", "adam_schedule_free", torch.optim.Adam, torch.optim.SGD])
    def test_gradients_along_unit_rows_move_nothing(self, optimizer):
        params = parameters()[:1]
        built = build_optimizer(optimizer, [{"params": params, "unit_rows": True}], lr=0.1, eps=1e-3)
        for group in built.param_groups:
            group["eps"] = 1e-3
        params[0].grad = 1e-4 * params[0].detach().clone()
        built.step()
        torch.testing.assert_close(params[0], parameters()[0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", BUILT_HERE)
    def test_weights_and_biases_learn(self, name):
        params = parameters()[:3]
        target = -params[0].detach().roll(1, 0)
        given = [{"params": params[:1], "unit_rows": True}, {"params": params[1:]}]
        optimizer = build_optimizer(name, given, lr=3e-2, betas=(0.8, 0.95))

        def losses() -> list[torch.Tensor]:
            return [(params[0] - target).square().mean(), *((p - 0.5).square().mean() for p in params[1:])]

        first = [float(loss.detach()) for loss in losses()]
        for _ in range(150):
            sum(losses()).backward()
            optimizer.step()
            optimizer.zero_grad()
        getattr(optimizer, "eval", lambda: None)()
        assert all(float(loss.detach()) < 0.2 * begun for loss, begun in zip(losses(), first, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", BUILT_HERE)
    def test_rows_begin_anew(self, name, dtype):
        params = parameters(dtype)[:3]
        optimizer = build_optimizer(name, groups(params), lr=1e-2)
        go(optimizer, params, range(3))
        rows = torch.tensor([1, 4])
        others = torch.tensor([0, 2, 3, 5])
        before = params[0].detach().clone()
        written = torch.nn.functional.normalize(torch.randn(2, 8), dim=1).to(dtype)
        with torch.no_grad():
            params[0][rows] = written
        take_rows(optimizer, params[0], rows)
        for move in ("eval", "train"):
            getattr(optimizer, move, lambda: None)()
            torch.testing.assert_close(params[0][rows], written)
        torch.testing.assert_close(params[0][others], before[others])
        moments = [t for t in means(optimizer.state_dict()) if t.shape == (12, 8)]
        assert bool(moments) is (name != "signum_schedule_free")
        anew = [t for t in moments if (t[rows] == 0).all() and (t[others] != 0).any()]
        assert len(anew) == len(moments) // 2  # of one matrix, and not of the other


class TestBuilding:
    def test_adam_is_the_rows_own(self):
        optimizer = build_optimizer(
            "adam", groups(parameters()), lr=1e-3, betas=(0.1, 0.2), eps=1e-3, max_grad_norm=2.0
        )
        assert type(optimizer) is RowAdam and optimizer.max_grad_norm == 2.0
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.1, 0.2), 1e-3)

    @pytest.mark.parametrize(
        "own",
        [
            torch.optim.AdamW,
            functools.partial(torch.optim.SGD, momentum=0.9),
            lambda groups: torch.optim.RMSprop(groups, alpha=0.5),
            lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]], lr=1e-3),
        ],
    )
    def test_a_users_own_is_wrapped(self, own):
        params = parameters()
        optimizer = build_optimizer(own, groups(params), lr=0.1, max_grad_norm=1.0)
        go(optimizer, params, range(2))
        torch.testing.assert_close(params[0].norm(dim=1), torch.ones(12))
        assert not same_bits(params[1:2], parameters()[1:2])

    def test_groups_of_the_caller_stay_as_they_are(self):
        given = groups(parameters())
        before = [dict(group) for group in given]
        for name in BUILT_HERE:
            build_optimizer(name, given)
        assert [list(group) for group in given] == [list(group) for group in before]

    def test_unknown_names_and_numbers_are_refused(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'muon'"):
            build_optimizer("mun", groups(parameters()))
        for name in BUILT_HERE:
            with pytest.raises(ConfigError, match="betas=\\(1.0, 0.9\\)"):
                build_optimizer(name, groups(parameters()), betas=(1.0, 0.9))

    def test_eight_bits_without_their_package_are_told_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(MissingDependencyError, match="pip install bitsandbytes"):
            build_optimizer("adam_8bit", groups(parameters()))

    def test_eight_bits_are_built_of_the_package(self, monkeypatch):
        package = types.SimpleNamespace(optim=types.SimpleNamespace(Adam8bit=torch.optim.Adam))
        monkeypatch.setitem(sys.modules, "bitsandbytes", package)
        optimizer = build_optimizer("adam_8bit", groups(parameters()), betas=(0.1, 0.2), eps=1e-3)
        assert optimizer.param_groups[0]["betas"] == (0.1, 0.2) and optimizer.param_groups[0]["eps"] == 1e-3
