"""Every setting of every method changes what is trained; shown by the weights that come out."""

import contextlib
import dataclasses
import functools

import pytest
import torch

from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS, TrainerConfig
from tests.tiny import Planted

DIM, BATCH = 12, 32
OF_ALL = {"dict_size": 24, "lr": 3e-3, "seed": 0, "loss_fn": "reconstruction"}
"""Settings of every run; k where a method has one."""
DYING = {"dead_feature_threshold": 0.9, "feature_sampling_window": BATCH}
"""A latent that fires on less than so many tokens of a step is dead in the next one."""
SGD = {"optimizer": torch.optim.SGD, "lr": 0.1, "max_grad_norm": None}
"""A weight of the whole loss changes nothing where gradients are brought to one length."""

SILENT = {"dead_feature_threshold": 1e-9}
"""Here every fourth latent is made to be silent."""
CHANGES = {
    "dict_size": ({}, 20),
    "expansion_factor": ({"dict_size": None}, 2),
    "seed": ({}, 1),
    "grad_acc_steps": ({}, 2),
    "lr": ({}, 1e-3),
    "optimizer": ({}, "signum"),
    "beta1": ({}, 0.5),
    "beta2": ({}, 0.7),
    "eps": ({}, 1.0),
    "max_grad_norm": (SGD, 1e-4),
    "max_loss_ratio": ({**SGD, "steps": 23}, 1.0001),
    "schedule": ({}, "cosine"),
    "warmup_steps": ({}, 5),
    "decay_start": ({}, 4),
    "ema_decay": ({}, 0.5),
    "wiring": ({}, "skip_transcoder"),
    "n_heads": ({"wiring": "heads", "n_heads": 2}, 4),
    "encoder_lr_factor": ({}, 0.7),
    "decoder_lr_factor": ({}, 0.7),
    "unit_norm_decoder": ({}, "flip"),
    "apply_b_dec_to_input": ({}, "flip"),
    "rank_by_norm": ({"unit_norm_decoder": False}, True),
    "b_dec_init_method": ({}, "flip"),
    "scale_encoder": ({}, "flip"),
    "decoder_init_norm": ({}, 0.3),
    "decoder_init_data_share": ({}, 0.7),
    "init_encoder_as_decoder_transpose": ({}, False),
    "orthogonal_init": ({}, True),
    "reconstruction_weight": (SGD, 0.5),
    "auxk_alpha": (DYING, 0.7),
    "k_aux": ({**DYING, "auxk_alpha": 0.7}, 2),
    "auxk_every": ({**DYING, "auxk_alpha": 0.7}, 2),
    "use_ghost_grads": (DYING, True),
    "pre_act_loss_coefficient": (DYING, 0.5),
    "resample_steps": (DYING, 4),
    "dead_feature_threshold": ({**DYING, "auxk_alpha": 0.7}, 0.05),
    "dead_feature_window": ({**SILENT, "pre_act_loss_coefficient": 0.5}, 1),
    "feature_sampling_window": ({**DYING, "auxk_alpha": 0.7}, 3 * BATCH),
    "k": ({}, 4),
    "k_anneal_steps": ({}, 6),
    "k_anneal_start": ({"k_anneal_steps": 6}, 7),
    "threshold_beta": ({"threshold_start_step": 2}, 0.3),
    "threshold_start_step": ({}, 2),
    "sparsity_penalty": ({}, 0.3),
    "sparsity_function": ({}, "flip"),
    "lp_norm": ({"sparsity_function": "lp"}, 0.7),
    "tanh_scale": ({"sparsity_function": "tanh"}, 1.0),
    "target_l0": ({"sparsity_function": "target_l0"}, 2.0),
    "scale_sparsity_penalty_by_decoder_norm": ({"unit_norm_decoder": False}, "flip"),
    "sparsity_warmup_steps": ({}, 7),
    "mse_loss_normalization": ({}, "variance"),
    "bandwidth": ({}, 0.3),
    "kernel": ({"bandwidth": 0.3, "steps": 23}, "flip"),
    "initial_threshold": ({}, 0.2),
    "jumprelu_ste_to_input": ({"bandwidth": 0.3}, True),
    "threshold_lr_factor": ({"bandwidth": 0.3, "steps": 23}, 0.2),
    "group_fractions": ({}, (0.25, 0.25, 0.5)),
    "group_weights": ({"group_fractions": (0.5, 0.5)}, (0.9, 0.1)),
    "anneal_start": ({}, 4),
    "anneal_end": ({"anneal_start": 2}, 6),
    "p_start": ({}, 0.8),
    "p_end": ({"anneal_start": 2}, 0.5),
    "n_sparsity_updates": ({"anneal_start": 2}, 2),
    "sparsity_queue_length": ({"anneal_start": 5, "steps": 23}, 1),
    "multi_topk": ({}, True),
}
"""For each setting: the others of the run in which it is read, and another value; "flip" is the one
that is not the method's default."""
OTHERS = {
    "sparsity_function": ("tanh", "Lp^p", "Lp"),
    "kernel": ("rectangle", "triangle"),
    "b_dec_init_method": ("geometric_median", "zeros"),
}
NOT_WEIGHTS = {
    "site": "where the data are from",
    "target_site": "where the data are from",
    "wandb_name": "a name",
    "normalize": "of the data of a run (tests/test_normalization.py)",
    "finetune": "tests/test_finetune.py",
    "dict_class": "tests/trainers",
    "micro_acc_steps": "equal weights (test_trainers.py)",
    "cuda_graph": "equal weights (tests/test_replay.py)",
    "loss_fn": "it needs a model (tests/trainers/test_end_to_end.py)",
    "activation_checkpointing": "equal weights of a model's loss",
}
ONE_OF_EACH = ("top_k", "batch_top_k", "jump_relu", "gated", "standard", "matching_pursuit")
"""Methods on which the settings of all are tried."""
OF_OTHERS = {
    "p_anneal": {"lp_norm", "tanh_scale", "target_l0"},
    "gated_anneal": {"lp_norm", "tanh_scale", "target_l0"},
    "gated": {"target_l0"},
    "standard": {"target_l0"},
    "standard_april_update": {"target_l0"},
    "matryoshka_batch_top_k": {"n_heads"},
    "jump_relu": {"scale_sparsity_penalty_by_decoder_norm"},
}
"""Settings that a method shares with others, and refuses, or whose penalty it refuses."""


def _cases():
    common = {field.name for field in dataclasses.fields(TrainerConfig)}
    for name in TRAINERS:
        config = TRAINERS[name].Config
        if not issubclass(config, TrainerConfig):
            continue
        for field in dataclasses.fields(config):
            skipped = {*NOT_WEIGHTS, *config.unread, *OF_OTHERS.get(name, ())}
            if field.name not in skipped and (name in ONE_OF_EACH or field.name not in common):
                yield name, field.name


CASES = list(_cases())


def test_every_setting_has_a_change():
    assert {setting for _, setting in CASES} == set(CHANGES)


@functools.cache
def batches() -> list[torch.Tensor]:
    made = list(Planted(DIM, 20, 0.2, seed=1).batches(23, BATCH))
    made[20] *= 5  # a spike, when the usual loss is known
    return made


@functools.cache
def trained_once(name: str, settings: tuple):
    return trained(name, dict(settings))


def trained(name: str, settings: dict):
    config = TRAINERS[name].Config
    known = {field.name for field in dataclasses.fields(config)}
    ours = {
        key: value
        for key, value in {**OF_ALL, "k": 3, **settings}.items()
        if key in known and (key, value) != ("dict_size", None)
    }
    steps = settings.get("steps", 8)
    facts = {"output_dims": (DIM,)} if WIRINGS[ours.get("wiring", "autoencoder")].writes_others else {}
    trainer = config(**ours).build(activation_dim=DIM, steps=steps, device="cpu", **facts)
    if SILENT.items() <= settings.items():
        for part in trainer.dictionary.coders():
            for bias in part.coder.encoder_biases():
                bias.data[::4] = -10.0
    for step, x in enumerate(batches()[:steps]):
        trainer.update(step, x)
    return trainer.settings, trainer.export().state_dict()


def accepts(name: str, setting: str, value: object) -> bool:
    with contextlib.suppress(ConfigError):
        return bool(TRAINERS[name].Config(**{setting: value}))
    return False


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_setting_changes_what_is_trained(name, setting):
    beside, value = CHANGES[setting]
    settings, before = trained_once(name, tuple(beside.items()))
    if value == "flip":
        default = getattr(settings, setting)
        value = next(
            one for one in OTHERS.get(setting, (True, False)) if one != default and accepts(name, setting, one)
        )
    _, after = trained(name, {**beside, setting: value})
    assert before.keys() != after.keys() or any(
        before[key].shape != after[key].shape
        or not torch.allclose(before[key].float(), after[key].float(), rtol=1e-4, atol=1e-5)
        for key in before
    )


@pytest.mark.parametrize("name", [name for name in TRAINERS if issubclass(TRAINERS[name].Config, TrainerConfig)])
def test_settings_that_a_method_does_not_read_are_refused(name):
    config = TRAINERS[name].Config
    for setting in config.unread:
        default = config.__dataclass_fields__[setting].default
        value = not default if isinstance(default, bool | None) else 3 if isinstance(default, int) else 0.5
        if setting == "unit_norm_decoder":
            value = False  # its default, True, is that of the wiring
        with pytest.raises(ConfigError, match=f"{setting}=.* has no effect"):
            config(**{setting: value}).build(activation_dim=DIM, steps=8, device="cpu")


@pytest.mark.parametrize("name", ["standard", "standard_april_update", "gated"])
@pytest.mark.parametrize("function", ["l0", "target_l0", "quadratic_l0"])
def test_penalties_of_thresholds_are_refused_before_the_first_step(name, function):
    with pytest.raises(ConfigError, match=r"no gradient|no thresholds"):
        TRAINERS[name].Config(sparsity_function=function).build(activation_dim=DIM, steps=8, device="cpu")
