"""One seed decides a run, bit for bit: in new processes, and over numbers of threads where sums allow.

The steps of these methods have the same bits with 1, 2 and 3 threads, at sizes of which PyTorch
splits the products over threads. Initial weights have not: they come from sums over up to 32,768
rows, each thread's share of which is added up at the end. Nor have the steps of p-annealing.
"""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dictionary_learning import ActivationBuffer, load_model, trainSAE, write_cache
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS, RunInfo, TrainerTopK, recipes
from tests import tiny
from tests.tiny import Planted

METHODS = ("top_k", "batch_top_k", "jump_relu", "gated")
RUN = f"""
import sys, torch
from dictionary_learning import trainSAE
from tests.tiny import Planted
configs = [{{"trainer": name, "dict_size": 256, **({{"k": 8}} if "top_k" in name else {{}})}} for name in {METHODS}]
for run in sys.argv[1:]:
    folder, seed, threads = run.split(":")
    torch.set_num_threads(int(threads))
    trainSAE(list(Planted(dim=64).batches(10, 256)), configs, 10, save_dir=folder, seed=int(seed),
             progress=False, device="cpu")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The weights of each method by seed, threads and number of the run; the first and its equal in new processes."""
    place, found = tmp_path_factory.mktemp("runs"), {}
    others = [(0, 1, "again"), (0, 2, "first"), (1, 1, "first")]
    for of_process in ([(0, 1, "first")], others):
        said = [f"{place / f'{seed} {threads} {number}'}:{seed}:{threads}" for seed, threads, number in of_process]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", RUN, *said], check=True, env=environment)
    for run in [(0, 1, "first"), *others]:
        folder = place / " ".join(map(str, run))
        weights = [folder / f"trainer_{n}" / "dictionary.safetensors" for n in range(len(METHODS))]
        found[run] = {name: path.read_bytes() for name, path in zip(METHODS, weights, strict=True)}
        found[run, "tensors"] = {name: load_file(path) for name, path in zip(METHODS, weights, strict=True)}
    return found


def distance(first, second) -> float:
    """Returns the largest difference of a tensor, relative to its norm."""
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes_in_another_process(runs, method):
    assert runs[0, 1, "first"][method] == runs[0, 1, "again"][method]


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_other_weights(runs, method):
    assert distance(runs[(0, 1, "first"), "tensors"][method], runs[(1, 1, "first"), "tensors"][method]) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_more_threads_change_no_more_than_rounding(runs, method):
    # initial sums differ in their last bits, and Adam's first steps have the size of the rate
    assert distance(runs[(0, 1, "first"), "tensors"][method], runs[(0, 2, "first"), "tensors"][method]) < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dim", "size", "n"), [(32, 96, 64), (64, 1024, 256)])
def test_steps_have_the_same_bits_with_any_number_of_threads(method, dim, size, n):
    batches = list(Planted(dim=dim).batches(5, n))
    options = {"k": 8} if "top_k" in method else {}

    def weights(threads):
        trainer = TRAINERS[method].Config(dict_size=size, **options).build(RunInfo(activation_dim=dim, steps=5))
        trainer.initialize(batches[0])
        torch.set_num_threads(threads)
        try:
            for batch in batches:
                trainer.update(0, batch)
        finally:
            torch.set_num_threads(1)
        return trainer.dictionary.state_dict()

    one = weights(1)
    for threads in (2, 3):
        assert all(torch.equal(x, one[name]) for name, x in weights(threads).items())


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def buffer(model, **options):
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32}
    return ActivationBuffer(tiny.documents(30), model, "model.layers.1", **sizes, end_of_data="repeat", **options)


def test_one_seed_in_python_is_that_of_everything(model, tmp_path):
    def trained(data, config, **options):
        (dictionary,) = trainSAE(data, config, 4, progress=False, device="cpu", **options)
        return dictionary

    asked = trained(buffer(model, seed=5), TrainerTopK.Config(k=3, dict_size=48, seed=5))
    for config in (TrainerTopK.Config(k=3, dict_size=48), {"trainer": "top_k", "k": 3, "dict_size": 48}):
        given = trained(buffer(model), config, seed=5)
        assert given.info.config["trainer"]["seed"] == given.info.config["buffer"]["seed"] == 5
        assert all(torch.equal(a, b) for a, b in zip(asked.parameters(), given.parameters(), strict=True))
    own = trained(buffer(model), TrainerTopK.Config(k=3, dict_size=48, seed=2), seed=5)
    assert own.info.config["trainer"]["seed"] == 2
    recipe = trained(buffer(model), recipes.gao_2024(k=3, dict_size=48), seed=5)
    assert recipe.info.config["trainer"]["seed"] == 5
    write_cache(tmp_path, tiny.documents(40), model, "model.layers.1", ctx_len=16, refresh_batch_size=4, shard_size=64)
    cache = {"out_batch_size": 32, "end_of_data": "repeat"}
    config = TrainerTopK.Config(k=3, dict_size=48)
    asked = trained(ActivationCache(tmp_path, seed=5, **cache), config.replace(seed=5))
    given = trained(ActivationCache(tmp_path, **cache), config, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(asked.parameters(), given.parameters(), strict=True))
    assert trained(ActivationCache(tmp_path, seed=None, **cache), config, seed=5).info.config["buffer"]["seed"] is None


def test_rows_that_were_read_keep_their_order(model, tmp_path):
    data = buffer(model)
    next(data)
    with pytest.raises(ConfigError, match="read with seed=0"):
        trainSAE(data, TrainerTopK.Config(k=3), 2, progress=False, device="cpu", seed=5)
    write_cache(tmp_path, tiny.documents(20), model, "model.layers.1", ctx_len=16, refresh_batch_size=4)
    cache = ActivationCache(tmp_path, out_batch_size=8)
    next(cache)
    with pytest.raises(ConfigError, match="served with seed=0"):
        cache.reseed(1)
    cache.reseed(0)
