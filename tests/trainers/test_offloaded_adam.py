"""Adam with its means in main memory: the bits of Adam, whatever the slices."""

import copy
import logging

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.errors import Interrupted
from dictionary_learning.trainers import TRAINERS, _main_memory
from dictionary_learning.trainers._optimizer_rows import take_rows
from dictionary_learning.trainers._row_adam import RowAdam
from tests import shell
from tests.tiny import Planted
from tests.trainers.test_row_adam import gradients, groups, parameters

SLICES = [24 * 4 * 128, 24 * 4 * 699, 1, 1 << 28]
"""Bytes of 128 rows, of all but one, of one row, and of more than there are."""


def stepped(params, optimizer, steps):
    for step in steps:
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.to(p.dtype) * (torch.nan if step == 2 else 1)
        optimizer.step()


def assert_same(first, second):
    for (p, optimizer), (q, other) in zip(*(zip(x[0], [x[1]] * 3, strict=True) for x in (first, second)), strict=True):
        assert torch.equal(p, q)
        for name, value in other.state[q].items():
            assert torch.equal(optimizer.state[p][name], value), name


@pytest.fixture(params=SLICES)
def sliced(request, monkeypatch):
    monkeypatch.setattr(_main_memory, "_SLICE_BYTES", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_have_the_bits_of_adam(sliced, dtype):
    """A step whose gradient is not finite is among them."""
    ours, plain = parameters(dtype), parameters(dtype)
    offloaded, adam = (RowAdam(groups(p), max_grad_norm=1.0, offloads=p is ours) for p in (ours, plain))
    stepped(ours, offloaded, range(5)), stepped(plain, adam, range(5))
    assert_same((ours, offloaded), (plain, adam))
    assert float(offloaded.n_skipped) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", [True, False], ids=["offloaded", "plain"])
def test_each_goes_on_from_the_state_of_the_other(monkeypatch, dtype, before):
    monkeypatch.setattr(_main_memory, "_SLICE_BYTES", SLICES[0])
    whole, halves = parameters(dtype), parameters(dtype)
    adam, first = RowAdam(groups(whole)), RowAdam(groups(halves), offloads=before)
    stepped(whole, adam, range(6)), stepped(halves, first, range(3))
    state = copy.deepcopy(first.state_dict())
    second = RowAdam(groups(halves), offloads=not before)
    second.load_state_dict(state)
    stepped(halves, second, range(3, 6))
    assert_same((halves, second), (whole, adam))


def test_rows_that_others_wrote_are_forgotten():
    params = parameters()
    optimizer = RowAdam(groups(params), offloads=True)
    stepped(params, optimizer, range(2))
    take_rows(optimizer, params[0], torch.arange(10))
    mean = optimizer.state[params[0]]["exp_avg"]
    assert not mean[:10].any() and mean[10:].any()


def test_only_slices_of_the_means_are_on_the_device(monkeypatch):
    """The largest number of bytes that are lent at once is that of a slice of each mean."""
    monkeypatch.setattr(_main_memory, "_SLICE_BYTES", SLICES[0])
    lent, given = _main_memory.lent, []

    def listens(means, rows, device):
        for own in lent(means, rows, device):
            assert all(
                x.untyped_storage().data_ptr() != m.untyped_storage().data_ptr()
                for x, m in zip(own, means, strict=True)
            )
            given.append(sum(x.nbytes for x in own))
            yield own

    monkeypatch.setattr("dictionary_learning.trainers._row_adam.lent", listens)
    params = parameters()
    stepped(params, RowAdam(groups(params), offloads=True), range(1))
    assert max(given) == 2 * SLICES[0] and len(given) == 2 * 6 and sum(given) == 2 * 2 * params[0].nbytes


CONFIG = {"trainer": "batch_top_k", "k": 4, "dict_size": 96, "unit_norm_decoder": True}


def trained(steps=8, **options):
    config = {**CONFIG, **{name: options.pop(name) for name in ("optimizer", "trainer") if name in options}}
    data = Planted().batches(8, 64)
    return trainSAE(data, config, steps, progress=False, device="cpu", **options)[0].state_dict()


def test_training_has_the_bits_of_adam_and_says_that_a_cpu_gains_nothing(sliced, caplog):
    plain = trained()
    with caplog.at_level(logging.WARNING):
        offloaded = trained(optimizer="adam_offloaded")
    assert caplog.text.count("saves no memory") == 1
    assert all(torch.equal(plain[name], value) for name, value in offloaded.items())
    typed = TRAINERS["batch_top_k"].Config(k=4, dict_size=96, unit_norm_decoder=True, optimizer="adam_offloaded")
    (again,) = trainSAE(Planted().batches(8, 64), typed, 8, progress=False, device="cpu")
    assert all(torch.equal(plain[name], value) for name, value in again.state_dict().items())


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    class Stops(TRAINERS["batch_top_k"]):
        def update(self, *given, **named):
            if self.step == 4 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt
            return super().update(*given, **named)

    options = {"trainer": Stops, "save_dir": tmp_path / "run", "checkpoint_steps": 2, "resume": "auto"}
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        trained(**options, optimizer="adam_offloaded")
    again = trained(**options, optimizer="adam_offloaded")
    assert all(torch.equal(again[name], value) for name, value in trained().items())


def test_the_shell_knows_it(tmp_path):
    plain, offloaded, file = shell.trained(tmp_path, ["--n-ctxs", "32"], ["--optimizer", "adam_offloaded"])
    assert all(torch.equal(offloaded[name], value) for name, value in plain.items())
    assert all(torch.equal(file[name], value) for name, value in plain.items())
