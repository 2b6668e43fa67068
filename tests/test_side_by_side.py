"""Several dictionaries make their steps in threads beside each other, on a CPU."""

import threading
import time

import pytest
import torch

from dictionary_learning import AutoEncoder, SAETrainer, TrainerTopK, _training_step as training_step, trainSAE
from dictionary_learning._side_by_side import is_worthwhile, side_by_side
from dictionary_learning.ops import use_backend
from dictionary_learning.ops._backend import forced_backend
from dictionary_learning.trainers import TRAINERS
from tests.tiny import Planted

METHODS = [name for name, trainer in TRAINERS.items() if name not in ("temporal", "end_to_end")]


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def counted(monkeypatch):
    """Collects the number of dictionaries that made a step beside each other."""
    found = []

    def count(calls):
        found.append(len(calls))
        return side_by_side(calls)

    monkeypatch.setattr(training_step, "side_by_side", count)
    return found


def batches(n=4):
    return list(Planted(dim=16).batches(n, 64))


def config(method, seed):
    options = {"k": 4} if "top_k" in method or method in ("group_max", "matching_pursuit") else {}
    return {"trainer": method, "dict_size": 40, "seed": seed, **options}


def weights(dictionaries):
    return [dict(dictionary.state_dict()) for dictionary in dictionaries]


def train(configs, **options):
    return weights(trainSAE(batches(), configs, 4, progress=False, device="cpu", **options))


@pytest.mark.parametrize("method", METHODS)
def test_dictionaries_are_those_of_a_run_one_after_the_other(method, counted, monkeypatch):
    configs = [config(method, seed) for seed in (0, 1, 2)]
    found, again = train(configs), train(configs)
    assert counted == [3] * 8
    monkeypatch.setattr(training_step, "is_worthwhile", lambda _: False)
    expected = train(configs)
    assert len(counted) == 8
    for one, same, other in zip(found, again, expected, strict=True):
        for name, x in one.items():
            assert torch.equal(x, same[name])
            torch.testing.assert_close(x, other[name], rtol=1e-4, atol=1e-4)


def test_sites_of_one_run_go_beside_each_other(counted):
    rows = [{"a": x, "b": x.flip(-1)} for x in batches()]
    found = weights(trainSAE(rows, [config("top_k", 0)], 4, progress=False, device="cpu"))
    assert counted == [2] * 4
    assert len(found) == 2


class Own(SAETrainer):
    """Makes its own steps, and might share anything."""

    def __init__(self, activation_dim, dict_size, steps, seed=None, device="cpu", **_):
        super().__init__(seed)
        self.ae = AutoEncoder(activation_dim, dict_size)

    def update(self, step, x):
        assert threading.current_thread() is threading.main_thread()


def test_only_where_nothing_is_shared(counted):
    train([config("top_k", 0)])
    torch.set_num_threads(1)
    train([config("top_k", 0), config("top_k", 1)])
    torch.set_num_threads(2)
    own = {"trainer": Own, "activation_dim": 16, "dict_size": 40, "steps": 4}
    trainSAE(batches(), [own, config("top_k", 1)], 4, progress=False, device="cpu")
    assert not counted
    beside = []
    thread = threading.Thread(target=lambda: beside.append(is_worthwhile(torch.device("cpu"))))
    thread.start(), thread.join()
    assert beside == [False]
    assert is_worthwhile(torch.device("cpu"))
    assert not is_worthwhile(torch.device("meta"))


def test_calls_have_half_the_threads_the_modes_and_the_context_of_their_caller():
    torch.set_num_threads(5)

    def state():
        time.sleep(0.02)  # so that both workers have some
        return (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            forced_backend(),
            threading.current_thread() is threading.main_thread(),
        )

    with torch.no_grad(), use_backend("reference"):
        found = side_by_side([state] * 6)
    assert {one[:3] for one in found} == {(2, False, "reference")}
    assert {one[3] for one in found} == {True, False}
    assert torch.get_num_threads() == 5
    with torch.inference_mode():
        assert all(side_by_side([torch.is_inference_mode_enabled] * 4))
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert {one.dtype for one in side_by_side([lambda: x @ x] * 4)} == {torch.bfloat16}
    assert {one.dtype for one in side_by_side([lambda: x @ x] * 4)} == {torch.float32}
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", range(4))
def test_an_error_ends_all_and_waits_for_what_runs(kind, place):
    done, running = [], []

    def call(number):
        running.append(number)
        time.sleep(0.02)
        if number == place:
            raise kind(str(number))
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(kind, match=str(place)):
        side_by_side([lambda number=number: call(number) for number in range(8)])
    assert sorted([*done, place]) == sorted(running)  # what had begun has ended
    assert len(running) < 8
    assert torch.get_num_threads() == 2
    assert side_by_side([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]


def test_an_error_of_one_dictionary_is_that_of_the_run(monkeypatch):
    from dictionary_learning.trainers._base import Trainer

    original = Trainer.update

    def update(self, step, *arguments):
        if self.settings.seed == 1 and self.step == 2:
            raise RuntimeError("of the second")
        return original(self, step, *arguments)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(RuntimeError, match="of the second"):
        trainSAE(batches(), [TrainerTopK.Config(k=4, dict_size=40, seed=seed) for seed in (0, 1, 2)], 4, progress=False)
