"""A run on several ranks is the run of one process with their batches together, whatever is trained.

Sums over tokens are formed in another order, so that weights differ in rounding, which Adam's first
steps make visible: their size does not depend on that of a gradient.
"""

import functools

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS
from tests.contracts.test_trainers import family, has
from tests.contracts.test_wirings import REFUSED, batches, config
from tests.parallel.ranks import results
from tests.parallel.threads import run_threads

STEPS, N, SIZE = 8, 64, 2
TOLERANCE = 1e-3
"""Largest difference of a tensor, relative to its norm."""
EVENTFUL = {"dead_feature_threshold": 150, "threshold_start_step": 3, "k_anneal_steps": 5, "log_steps": None}
OPTIONS = {
    "multi_topk": ("top_k", "autoencoder", {"multi_topk": True, "micro_acc_steps": 2}),
    "accumulated": ("batch_top_k", "autoencoder", {"grad_acc_steps": 2, "ema_decay": 0.9}),
    "ghosts": ("standard", "autoencoder", {"use_ghost_grads": True}),
    "resampled": ("standard", "autoencoder", {"resample_steps": 4}),
    "dense_batch": ("standard", "autoencoder", {"mse_loss_normalization": "dense_batch"}),
    "guarded": ("top_k", "autoencoder", {"max_loss_ratio": 3.0}),
    "signum": ("top_k", "autoencoder", {"optimizer": "signum"}),
    "quadratic": ("jump_relu", "autoencoder", {"sparsity_function": "quadratic_l0"}),
}
CASES = {
    f"{trainer} {wiring}": (trainer, wiring, {})
    for trainer in TRAINERS
    for wiring in WIRINGS
    if (trainer, wiring) not in REFUSED and trainer != "temporal"
} | OPTIONS


def trained(name: str, parts: int, placement: str = "data"):
    """Returns tensors and figures of a run whose batches come in some parts."""
    trainer, wiring, options = CASES[name]
    # at its own rate BatchTopK goes up and down on these data, and rounding decides where it is
    asked = {
        **config(trainer, wiring),
        **({"lr": 3e-3} if trainer == "batch_top_k" else {}),
        **EVENTFUL,
        "loss_fn": "reconstruction",
        **options,
    }
    asked = {key: value for key, value in asked.items() if key == "trainer" or key in has(trainer)}
    data = [
        {site: x.chunk(parts)[part] for site, x in batch.items()}
        for batch in batches(wiring, STEPS, N)
        for part in range(parts)
    ]
    figures = []

    class Figures:
        def log(self, values, step, tokens):
            figures.append((tokens, values))

        def close(self):
            pass

    (dictionary,) = trainSAE(
        data, asked, STEPS, progress=False, device="cpu", log_steps=1, loggers=[Figures()],
        placement="latent" if placement == "mesh" else placement,
        activations_split_by_head=wiring == "heads", latent_ranks=2 if placement == "mesh" else None,
    )  # fmt: skip
    return dict(dictionary.state_dict()), figures


UNDIVIDED = ("group_max", "matching_pursuit", "resampled")
"""What needs all latents in one place."""
RUNS = [(name, "data") for name in CASES] + [(name, "latent") for name in CASES if name.split()[0] not in UNDIVIDED]


def all_trained(runs, parts):
    return {(name, placement): trained(name, parts, placement) for name, placement in runs}


def shown(name, placement):
    """Every method, every wiring and every option, each with every placement."""
    return {(part, placement) for part in name.split()}


@pytest.fixture(scope="module")
def spread(parameters_of):
    of_test = parameters_of(test_two_ranks_equal_one_process_with_twice_the_batch)
    return results(SIZE, all_trained, [(case["name"], case["placement"]) for case in of_test], SIZE)


@functools.cache
def alone_trained(name):
    return trained(name, 1)


@pytest.mark.parametrize(("name", "placement"), RUNS)
@pytest.mark.covering(shows=shown)
def test_two_ranks_equal_one_process_with_twice_the_batch(spread, name, placement):
    (first, figures), (second, silent) = (of_rank[name, placement] for of_rank in spread)
    alone, expected = alone_trained(name)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in alone.items():
        assert float((first[key] - value).norm()) <= TOLERANCE * float(value.norm()) + 1e-6, key
    assert not silent
    assert (
        [tokens for tokens, _ in figures] == [tokens for tokens, _ in expected] == [N * n for n in range(1, STEPS + 1)]
    )
    for (_, found), (_, wanted) in zip(figures, expected, strict=True):
        ((_, found),), ((_, wanted),) = found.items(), wanted.items()
        assert found == pytest.approx(wanted, rel=5e-3, abs=1e-4)


ON_FOUR = [(name, "latent") for name in CASES if name.split()[0] not in UNDIVIDED and "autoencoder" in name] + [
    ("top_k cross_layer_transcoder", "latent"), ("jump_relu crosscoder", "latent"), ("batch_top_k heads", "latent"),
    ("top_k autoencoder", "mesh"), ("batch_top_k autoencoder", "mesh"), ("standard crosscoder", "mesh"),
]  # fmt: skip
"""Every method on latents in four slices, which are of unequal size and more than some have dead; and
two slices for each of two halves of the tokens."""


@pytest.fixture(scope="module")
def four(parameters_of):
    of_test = parameters_of(test_four_ranks_with_slices_of_the_latents_equal_one_process)
    return results(4, all_trained, [(case["name"], case["placement"]) for case in of_test], 4)


@pytest.mark.parametrize(("name", "placement"), ON_FOUR)
# every family and wiring in slices: two ranks have every method
@pytest.mark.covering(shows=lambda name, placement: {(family(part), placement) for part in name.split()})
def test_four_ranks_with_slices_of_the_latents_equal_one_process(four, name, placement):
    alone, expected = alone_trained(name)
    for of_rank in four:
        for key, value in alone.items():
            found = of_rank[name, placement][0][key]
            assert float((found - value).norm()) <= TOLERANCE * float(value.norm()) + 1e-6, key
    figures = four[0][name, placement][1]
    for (_, found), (_, wanted) in zip(figures, expected, strict=True):
        ((_, found),), ((_, wanted),) = found.items(), wanted.items()
        assert found == pytest.approx(wanted, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["group_max autoencoder", "matching_pursuit autoencoder", "resampled"])
def test_what_needs_all_latents_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="placement='latent'.*(GroupMaxTrainer|MatchingPursuit|Resampling).*Use"):
        run_threads(2, lambda: trained(name, 2, "latent"))
