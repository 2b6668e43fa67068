"""What is raised in the step of one of several dictionaries: which one is said, and nothing is lost."""

import signal

import pytest
import torch

from dictionary_learning import TrainerTopK, load_dictionary, trainSAE
from dictionary_learning.errors import Interrupted
from tests.tiny import Planted

CONFIGS = [TrainerTopK.Config(k=4, dict_size=40, seed=seed) for seed in (0, 1, 2)]
ROWS = list(Planted(dim=16).batches(6, 64))


@pytest.fixture(params=[1, 2], ids=["in sequence", "beside each other"])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def raising(monkeypatch):
    """Returns a function that makes the second dictionary raise in its step 4, from then on or once."""
    objective = TrainerTopK.objective

    def of(error, *, first=None):
        def raises(self, batch):
            if self.settings.seed == 1 and self.step == 3:
                if first is not None:
                    first()
                raise error
            return objective(self, batch)

        monkeypatch.setattr(TrainerTopK, "objective", raises)
        return lambda: monkeypatch.setattr(TrainerTopK, "objective", objective)

    return of


def train(folder=None, **options):
    return trainSAE(ROWS, CONFIGS, 6, save_dir=folder, progress=False, device="cpu", **options)


def test_an_error_says_which_dictionary_and_step_it_is_of(threads, raising, caplog):
    raising(ValueError("boom"))
    with caplog.at_level("INFO", "dictionary_learning"), pytest.raises(ValueError, match="boom") as raised:
        train()
    said = [*getattr(raised.value, "__notes__", ()), *caplog.messages]  # notes are of Python 3.11
    assert said.count("This was step 4 of the dictionary 'top_k-4 #2'.") == 1


@pytest.mark.parametrize(
    "error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_dictionaries_as_they_are_are_saved_whatever_is_raised(threads, raising, tmp_path, error):
    raising(error)
    with pytest.raises(type(error)) as raised:
        train(tmp_path)
    assert raised.value is error
    for number in range(3):
        found = load_dictionary(tmp_path / f"trainer_{number}")
        assert found.info.config["trained"]["step"] in (3, 4)


def test_a_run_that_a_step_interrupts_ends_as_one_that_a_signal_does(threads, raising, tmp_path):
    whole = train()
    mend = raising(KeyboardInterrupt())
    with pytest.raises(Interrupted, match="stopped after step 2 of 6") as raised:
        train(tmp_path, checkpoint_steps=2)
    assert (raised.value.step, raised.value.folder) == (2, str(tmp_path))
    mend()
    for one, other in zip(train(tmp_path, checkpoint_steps=2, resume="auto"), whole, strict=True):
        assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


def test_a_second_ctrl_c_ends_the_run_at_once(raising, tmp_path):
    raising(KeyboardInterrupt(), first=lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as raised:
        train(tmp_path, checkpoint_steps=2)
    assert not isinstance(raised.value, Interrupted)
    assert not list(tmp_path.glob("trainer_*"))
