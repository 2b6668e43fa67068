"""What scripts written for dictionary-learning 0.1 do: imports, arguments, configs."""

import importlib

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.errors import ConfigError
from tests.tiny import Planted

MODULES = {
    "dictionary": ["AutoEncoder", "AutoEncoderNew", "Dictionary", "GatedAutoEncoder", "IdentityDict", "JumpReluAutoEncoder"],
    "trainers": [
        "StandardTrainer", "GatedSAETrainer", "PAnnealTrainer", "GatedAnnealTrainer", "TopKTrainer", "JumpReluTrainer",
        "BatchTopKTrainer", "BatchTopKSAE",
    ],
    "trainers.trainer": ["SAETrainer", "ConstrainedAdam", "get_lr_schedule", "get_sparsity_warmup_fn"],
    "trainers.standard": ["StandardTrainer", "StandardTrainerAprilUpdate"],
    "trainers.gdm": ["GatedSAETrainer"],
    "trainers.p_anneal": ["PAnnealTrainer"],
    "trainers.gated_anneal": ["GatedAnnealTrainer"],
    "trainers.top_k": ["TopKTrainer", "AutoEncoderTopK", "geometric_median"],
    "trainers.batch_top_k": ["BatchTopKTrainer", "BatchTopKSAE"],
    "trainers.matryoshka_batch_top_k": ["MatryoshkaBatchTopKTrainer", "MatryoshkaBatchTopKSAE"],
    "trainers.jumprelu": ["JumpReluTrainer", "JumpReluAutoEncoder"],
    "grad_pursuit": ["grad_pursuit"],
}  # fmt: skip
COMMON = {
    "steps": 12, "activation_dim": 32, "dict_size": 96, "layer": 3, "lm_name": "tiny", "seed": 1, "device": "cpu",
    "wandb_name": "run", "submodule_name": "resid", "warmup_steps": 2, "decay_start": None,
}  # fmt: skip
PENALIZED = {"lr": 1e-3, "l1_penalty": 0.1, "sparsity_warmup_steps": 4}
ANNEALED = {
    "lr": 1e-3, "initial_sparsity_penalty": 0.1, "sparsity_warmup_steps": 4, "anneal_start": 3, "anneal_end": None,
    "p_start": 1, "p_end": 0, "n_sparsity_updates": 4, "sparsity_queue_length": 3, "resample_steps": None,
}  # fmt: skip
SELECTING = {
    "k": 4, "lr": None, "auxk_alpha": 1 / 32, "threshold_beta": 0.999, "threshold_start_step": 5, "k_anneal_steps": 3,
}  # fmt: skip
SCRIPTS = [
    ("standard", "StandardTrainer", {**PENALIZED, "resample_steps": 6}),
    ("standard", "StandardTrainerAprilUpdate", PENALIZED),
    ("gdm", "GatedSAETrainer", PENALIZED),
    ("p_anneal", "PAnnealTrainer", {**ANNEALED, "sparsity_function": "Lp"}),
    ("gated_anneal", "GatedAnnealTrainer", {**ANNEALED, "sparsity_function": "Lp^p"}),
    ("top_k", "TopKTrainer", SELECTING),
    ("batch_top_k", "BatchTopKTrainer", SELECTING),
    ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", {**SELECTING, "group_fractions": [0.25, 0.75], "group_weights": None}),
    ("jumprelu", "JumpReluTrainer", {"lr": 7e-5, "bandwidth": 0.001, "sparsity_penalty": 1.0, "sparsity_warmup_steps": 4, "target_l0": 20.0}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in MODULES.items() for n in names])
def test_names_are_where_they_were(module, name):
    assert hasattr(importlib.import_module(f"dictionary_learning.{module}"), name)


@pytest.mark.parametrize(("module", "name", "options"), SCRIPTS, ids=[name for _, name, _ in SCRIPTS])
def test_dict_config_trains_and_its_keys_are_kept(module, name, options):
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)
    config = {"trainer": trainer, **COMMON, **options}
    before = dict(config)
    trainSAE(Planted().batches(12, 64), trainer_configs=[config], steps=12, progress=False)
    assert config == before
    t = trainer(**COMMON, **options)
    for step, x in enumerate(Planted().batches(12, 64)):
        t.update(step, x)
    assert t.config["trainer_class"] == trainer.__name__
    assert t.config["dict_class"] == type(t.ae).__name__
    assert {
        "lr",
        "steps",
        "seed",
        "activation_dim",
        "dict_size",
        "layer",
        "lm_name",
        "wandb_name",
        "submodule_name",
    } <= t.config.keys()
    logged = t.get_logging_parameters()
    assert set(t.logging_parameters) == set(logged) and all(isinstance(value, float) for value in logged.values())
    x, x_hat, f, losses = t.loss(Planted().batch(8), 12, logging=True)
    assert x_hat.shape == x.shape and f.shape == (8, 96) and all(value == value for value in losses.values())


def test_settings_by_position():
    trainer = importlib.import_module("dictionary_learning.trainers.top_k").TopKTrainer(
        100, 32, 96, 5, 3, "tiny", device="cpu"
    )
    assert (trainer.steps, trainer.activation_dim, trainer.dict_size, trainer.config["k"]) == (100, 32, 96, 5)
    assert trainer.config["layer"] == 3 and trainer.config["lm_name"] == "tiny"
    with pytest.raises(ConfigError, match="positional"):
        type(trainer)(*range(1, 20))


def test_functions_of_columns_do_what_they_did():
    old = importlib.import_module("dictionary_learning.trainers.trainer")
    W, grad = torch.randn(6, 9), torch.randn(6, 9)
    unit = old.set_decoder_norm_to_unit_norm(W.clone(), 6, 9)
    torch.testing.assert_close(unit, W / W.norm(dim=0))
    free = old.remove_gradient_parallel_to_decoder_directions(unit, grad.clone(), 6, 9)
    torch.testing.assert_close((free * unit).sum(0), torch.zeros(9), atol=1e-6, rtol=0)
    schedule = old.get_lr_schedule(100, 10, decay_start=80)
    assert schedule(9) == 1 and schedule(99) == pytest.approx(0.05)
    assert old.get_sparsity_warmup_fn(100, 10)(5) == 0.5 and old.get_sparsity_warmup_fn(100)(0) == 1
