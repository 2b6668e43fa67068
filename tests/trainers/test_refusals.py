"""Settings that contradict each other, have no effect or cannot be used: an error of ours, that names them."""

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, GatedAutoEncoder, Transcoder
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.trainers import TRAINERS, RunInfo, SAETrainer, TrainerTopK
from dictionary_learning.trainers.recipes import RECIPES
from tests.tiny import Planted

TOP_K = {"trainer": "top_k", "k": 4, "dict_size": 32}
STANDARD = {"trainer": "standard", "dict_size": 32}
FACTS = {"activation_dim": 16, "steps": 3, "device": "cpu"}


def train(config, **options):
    data = [{"m:in": x, "m:out": x} for x in Planted(16).batches(3, 32)]
    return trainSAE(data, {"site": "m:in", **config}, 3, progress=False, **options)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**TOP_K, "warmup_steps": 2, "lr_warm_up_steps": 1}, "two values of warmup_steps"),
        ({**STANDARD, "sparsity_penalty": 5.0, "l1_penalty": 0.5}, "two values of sparsity_penalty"),
        ({**TOP_K, "steps": 2}, "steps=2"),
        ({**TOP_K, "site_dims": [8]}, "site_dims="),
        ({**TOP_K, "output_dims": [8]}, "output_dims="),
        ({**TOP_K, "dict_class": BatchTopKSAE}, "dict_class=BatchTopKSAE"),
        ({**TOP_K, "dict_class": "BatchTopKSAE"}, "dict_class=BatchTopKSAE"),
        ({**TOP_K, "dict_class": "Transcoder"}, "dict_class='Transcoder'"),
        ({**TOP_K, "dict_class": AutoEncoder}, "dict_class"),
        ({**TOP_K, "dict_class": int}, "dict_class"),
        ({**STANDARD, "dict_class": GatedAutoEncoder}, "dict_class=GatedAutoEncoder"),
        ({**TOP_K, "dict_class": BatchTopKSAE, "finetune": AutoEncoderTopK(16, 32, 4)}, "dict_class=BatchTopKSAE"),
        ({"trainer": "top_k", "expansion_factor": 8, "finetune": AutoEncoderTopK(16, 32, 4)}, "expansion_factor=8"),
        ({"trainer": "top_k", "dict_size": 16, "finetune": AutoEncoderTopK(16, 32, 4)}, "dict_size=16"),
        ({"trainer": "top_k", "wiring": "transcoder", "finetune": AutoEncoderTopK(16, 32, 4)}, "wiring="),
        ({"trainer": "top_k", "wiring": "autoencoder", "finetune": Transcoder(16, 32, {"name": "top_k", "k": 4})}, "wiring="),
        ({**TOP_K, "n_heads": 2}, "n_heads=2"),
        ({**TOP_K, "k_anneal_start": 9}, "k_anneal_start=9"),
        ({**TOP_K, "expansion_factor": 8}, "expansion_factor=8"),
        ({**TOP_K, "optimizer": torch.optim.SGD, "beta1": 0.5}, "beta1=0.5"),
        ({**TOP_K, "optimizer": "signum", "beta2": 0.5}, "beta2=0.5"),
        ({**STANDARD, "tanh_scale": 2.0}, "tanh_scale=2.0"),
        ({**TOP_K, "device": "foo"}, "device="),
        ({**TOP_K, "device": "meta"}, "device="),
        ({**TOP_K, "seed": 2**70}, "seed is"),
        ({**TOP_K, "grad_acc_steps": 4}, "grad_acc_steps=4 in a run of 3 batches"),
        ({**TOP_K, "schedule": lambda step: "a"}, "schedule="),
        ({"trainer": SAETrainer}, "no method"),
    ],
    ids=lambda given: None if isinstance(given, str) else ", ".join(list(given)[-2:]),
)  # fmt: skip
def test_contradictions_and_settings_without_effect_are_refused(config, named):
    with pytest.raises(ConfigError, match=named):
        train(config)


@pytest.mark.parametrize(
    "config",
    [
        {**TOP_K, "expansion_factor": 2},
        {**TOP_K, "steps": 3, "site_dims": [16], "output_dims": [16], "activation_dim": 16},
        {**TOP_K, "warmup_steps": 1, "lr_warm_up_steps": 1},
        {**TOP_K, "n_heads": None, "k_anneal_start": 16, "k_anneal_steps": None},
        {"trainer": "top_k", "expansion_factor": 2, "finetune": AutoEncoderTopK(16, 32, 4)},
        {**TOP_K, "dict_class": "AutoEncoderTopK", "finetune": AutoEncoderTopK(16, 32, 4)},
    ],
    ids=lambda given: None if isinstance(given, str) else ", ".join(list(given)[-2:]),
)
def test_equal_values_are_harmless(config):
    (dictionary,) = train(config)
    assert dictionary.dict_size == 32


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, "signum"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_takes_another_optimizer_and_size(name, optimizer):
    RECIPES[name](optimizer=optimizer, dict_size=256).resolved(RunInfo(**FACTS), None)
    RECIPES[name]().replace(optimizer=optimizer).resolved(RunInfo(**FACTS), None)  # as in the shell


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TrainerTopK(10, 16, 32, 4, 1, "lm", k=9), "k by position and by name"),
        (lambda: TrainerTopK.Config(k=4).build(RunInfo(**FACTS), steps=77), "steps by name"),
        (lambda: TrainerTopK(TrainerTopK.Config(k=4), RunInfo(**FACTS), steps=77), "by name"),
        (lambda: TrainerTopK(**FACTS, site_dims=[8]), "site_dims="),
        (lambda: TrainerTopK(**FACTS, output_dims=[8]), "output_dims="),
        (lambda: TrainerTopK(TrainerTopK.Config(k=4)), "needs activation_dim and steps"),
        (lambda: TrainerTopK.Config(3), "by position"),
    ],
)
def test_trainers_that_cannot_be_built_say_why(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


@pytest.mark.parametrize("name", list(TRAINERS))
def test_unknown_names_are_refused_wherever_they_are_given(name):
    config = TRAINERS[name].Config
    for make in (
        lambda: config(dict=32),
        lambda: config().build(**FACTS, layers=3),
        lambda: config.from_dict({"dict": 32}),
    ):
        with pytest.raises(UnknownNameError, match="Did you mean"):
            make()


def test_plug_ins_that_return_something_else_are_told():
    class NoNonlinearity(TrainerTopK):
        def nonlinearity(self):
            return "top_k"

    class NoLoss(TrainerTopK):
        def objective(self, batch):
            return super().objective(batch).total

    with pytest.raises(ConfigError, match=r"NoParts.after_step is called as after_step\(parts\)"):
        type("NoParts", (TrainerTopK,), {"after_step": lambda self: None})
    with pytest.raises(ConfigError, match="NoNonlinearity.nonlinearity returned 'top_k'"):
        NoNonlinearity(**FACTS, k=4, dict_size=32)
    with pytest.raises(ConfigError, match="NoLoss.objective returned Tensor"):
        NoLoss(**FACTS, k=4, dict_size=32).update(0, Planted(16).batch(8))
