"""A run on several ranks is the run of one process with their batches together, whatever is trained.

Sums over tokens are formed in another order, so that weights differ in rounding, which Adam's first
steps make visible: their size does not depend on that of a gradient.
"""

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.trainers import TRAINERS
from tests.contracts.test_trainers import has
from tests.contracts.test_wirings import REFUSED, batches, config
from tests.parallel.ranks import results

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
        data, asked, STEPS, progress=False, device="cpu", log_steps=1, loggers=[Figures()], placement=placement,
        activations_split_by_head=wiring == "heads",
    )  # fmt: skip
    return dict(dictionary.state_dict()), figures


def all_trained(names):
    return {name: trained(name, SIZE) for name in names}


@pytest.fixture(scope="module")
def spread():
    return results(SIZE, all_trained, list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process_with_twice_the_batch(spread, name):
    (first, figures), (second, silent) = (of_rank[name] for of_rank in spread)
    alone, expected = trained(name, 1)
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
