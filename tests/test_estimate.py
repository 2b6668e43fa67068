"""What a run needs is known before it starts, and a disk that is too small is refused."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, _estimate as module, load_model, trainSAE
from dictionary_learning._disk import size_on_disk
from dictionary_learning._estimate import estimate_run, tensor_bytes
from dictionary_learning._run_output import plan_of
from dictionary_learning._run_setup import training_jobs
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import OPTIMIZERS
from tests import tiny
from tests.tiny import Planted

CONFIG = {"trainer": "top_k", "k": 4, "dict_size": 1024}


def estimate(data, config=CONFIG, steps=12, checkpoint_steps=None, save_steps=None, keep=2):
    plan = plan_of(steps, None, checkpoint_steps, None, save_steps)
    jobs = training_jobs(config, ActivationStream(data), steps, torch.device("cpu"), False, None)
    return estimate_run(plan, jobs, data, keep), jobs


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adam_8bit"])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=str)
def test_the_state_of_optimizers_is_known_before_their_first_step(optimizer, options):
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    batches = list(Planted().batches(2, 64))
    need, (job,) = estimate(batches, {**CONFIG, "optimizer": optimizer, **options})
    job.trainer.update(0, batches[0])
    after = tensor_bytes(job.trainer.state_dict())
    assert need.weights + need.optimizer == pytest.approx(after, rel=0.02)  # counters of the small parameters


def test_what_is_on_disk_in_the_end_is_what_was_estimated(tmp_path):
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())

    def data():
        sizes = {"n_ctxs": 64, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32}
        return ActivationBuffer(tiny.documents(30), model, "model.layers.1", **sizes, end_of_data="repeat")

    need, _ = estimate(data(), checkpoint_steps=2, save_steps=[3], keep=2)
    assert need.model == sum(p.nbytes for p in model.module.parameters()) and need.rows == (12 * 32 + 4 * 16) * 16 * 4
    trainSAE(data(), CONFIG, 12, save_dir=tmp_path, checkpoint_steps=2, save_steps=[3], progress=False, device="cpu")
    found = list((tmp_path / "checkpoints").iterdir())
    assert len(found) == need.n_checkpoints - 1  # none is being written
    assert all(size_on_disk([path]) <= need.checkpoint * 1.05 for path in found)
    whole = size_on_disk([tmp_path])
    assert 0.5 * whole < need.disk - (1 << 20) < 2 * whole


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 0),
        ({"checkpoint_steps": 4}, 3),
        ({"checkpoint_steps": 4, "keep": 1}, 2),
        ({"checkpoint_steps": 4, "save_steps": [1, 2]}, 5),
        ({"checkpoint_steps": 20}, 1),
    ],
    ids=str,
)
def test_checkpoints_that_stay_are_counted_with_the_one_that_is_written(options, n):
    assert estimate(list(Planted().batches(2, 64)), **options)[0].n_checkpoints == n


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_disk", lambda path: 2_000_000)
    data = list(Planted().batches(4, 64))
    trainSAE(data, CONFIG, 4, save_dir=tmp_path / "small", progress=False, device="cpu")
    before = size_on_disk([tmp_path / "small"])
    wanted = "needs [0-9.]+ MB in .* 2 MB are left: .* 3 x .* of checkpoints .* lower keep_checkpoints"
    with pytest.raises(ConfigError, match=wanted):
        trainSAE(data, CONFIG, 4, save_dir=tmp_path / "new", checkpoint_steps=1, progress=False, device="cpu")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="keep_checkpoints"):
        trainSAE(
            data, {**CONFIG, "dict_size": 4096}, 4, save_dir=tmp_path / "small", checkpoint_steps=1, overwrite=True,
            progress=False, device="cpu",
        )  # fmt: skip
    assert size_on_disk([tmp_path / "small"]) == before  # a run that cannot be replaced stays


def test_the_room_of_a_run_that_is_replaced_counts_as_free(tmp_path, monkeypatch):
    data, options = list(Planted().batches(4, 64)), {"checkpoint_steps": 1, "progress": False, "device": "cpu"}
    trainSAE(data, CONFIG, 4, save_dir=tmp_path, **options)
    need, _ = estimate(data, steps=4, checkpoint_steps=1)
    left = need.disk - size_on_disk([tmp_path])
    monkeypatch.setattr(module, "free_disk", lambda path: left)
    trainSAE(data, CONFIG, 4, save_dir=tmp_path, overwrite=True, **options)
