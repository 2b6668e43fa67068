"""What trainers of dictionary-learning 0.1 take by position, and the values of what is left out.

A dict config, or a trainer that is called, is in the form of 0.1 if it has both `layer` and
`lm_name`, which every trainer asked for there. Its learning rate is that of plain Adam then, and
settings that it leaves out are those of 0.1.
"""

import logging
from collections.abc import Mapping
from typing import Any

from dictionary_learning.dictionaries import AutoEncoder

logger = logging.getLogger(__name__)

_FIRST = "steps activation_dim dict_size"
_TOP_K = (
    "layer lm_name dict_class lr auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step "
    "k_anneal_steps seed device wandb_name submodule_name"
)
_ANNEALED = (
    "lr warmup_steps decay_start sparsity_warmup_steps sparsity_function initial_sparsity_penalty anneal_start "
    "anneal_end p_start p_end n_sparsity_updates sparsity_queue_length resample_steps device seed wandb_name"
)
_GATED_ANNEALED = _ANNEALED.replace("decay_start sparsity_warmup_steps", "sparsity_warmup_steps decay_start")
_L1 = f"{_FIRST} layer lm_name dict_class lr l1_penalty warmup_steps sparsity_warmup_steps decay_start"
_NOTES = "seed device wandb_name submodule_name"
ORDERS: dict[str, str] = {
    "TrainerStandard": f"{_L1} resample_steps {_NOTES}",
    "StandardTrainerAprilUpdate": f"{_L1} {_NOTES}",
    "GatedSAETrainer": f"{_L1} {_NOTES}",
    "PAnnealTrainer": f"{_FIRST} layer lm_name dict_class {_ANNEALED} submodule_name",
    "GatedAnnealTrainer": f"{_FIRST} layer lm_name dict_class {_GATED_ANNEALED}",
    "TrainerTopK": f"{_FIRST} k {_TOP_K}",
    "BatchTopKTrainer": f"{_FIRST} k {_TOP_K}",
    "MatryoshkaBatchTopKTrainer": f"{_FIRST} k {_TOP_K}".replace(
        "lm_name dict_class", "lm_name group_fractions group_weights dict_class"
    ),
    "JumpReluTrainer": (
        f"{_FIRST} layer lm_name dict_class seed lr bandwidth sparsity_penalty warmup_steps sparsity_warmup_steps "
        "decay_start target_l0 device wandb_name submodule_name"
    ),
}
"""The arguments of each trainer in 0.1, in their order."""

_PLAIN: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "scale_encoder": False}
_PENALIZED = {**_PLAIN, "sparsity_penalty": 0.1, "b_dec_init_method": "zeros"}
_SELECTING = {**_PLAIN, "encoder_lr_factor": 1.0, "decoder_lr_factor": 1.0, "max_grad_norm": 1.0, "auxk_alpha": 1 / 32}
_ANNEALING: dict[str, Any] = {"p_start": 1.0, "p_end": 0.0, "n_sparsity_updates": 10, "sparsity_queue_length": 10}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "TrainerStandard": {**_PENALIZED, "lr": 1e-3, "decoder_init_norm": 0.1},
    "StandardTrainerAprilUpdate": {**_PENALIZED, "lr": 1e-3, "decoder_init_norm": 0.1, "max_grad_norm": 1.0},
    "GatedSAETrainer": {**_PENALIZED, "lr": 5e-5, "beta1": 0.0},
    "PAnnealTrainer": {
        **_PENALIZED, **_ANNEALING, "lr": 1e-3, "sparsity_function": "Lp", "seed": 42, "decoder_init_norm": 0.1,
    },
    "GatedAnnealTrainer": {
        **_PENALIZED, **_ANNEALING, "lr": 3e-4, "beta1": 0.0, "sparsity_function": "Lp^p", "seed": 42,
    },
    "TrainerTopK": _SELECTING,
    "BatchTopKTrainer": _SELECTING,
    "MatryoshkaBatchTopKTrainer": _SELECTING,
    "JumpReluTrainer": {
        **_PENALIZED, "lr": 7e-5, "beta1": 0.0, "sparsity_penalty": 1.0, "bandwidth": 0.001, "target_l0": 20.0,
        "max_grad_norm": 1.0, "normalize": None,
    },
}  # fmt: skip
_LAW, _LAW_WIDTH = 2e-4, 2**14
"""TopK's learning rate there, and the number of latents at which it is this."""
_LIMITED = {"warmup_steps": 1000, "sparsity_warmup_steps": 2000, "anneal_start": 15_000}
"""Steps that are left out in runs which are not longer: 0.1 refuses such runs."""


def is_older(given: Mapping[str, Any]) -> bool:
    """Returns whether arguments are in the form of dictionary-learning 0.1."""
    return given.get("layer") is not None and given.get("lm_name") is not None


def with_older_defaults(trainer: type[Any], names: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in the form of 0.1, completed by its defaults.

    Args:
        trainer: The trainer.
        names: The names of its settings.
        given: Settings and facts, by our names.
    """
    name = next((cls.__name__ for cls in trainer.__mro__ if cls.__name__ in _DEFAULTS), None)
    if name is None:
        return dict(given)
    settings, steps = dict(_DEFAULTS[name]), given.get("steps") or 0
    if name in ("TrainerTopK", "BatchTopKTrainer", "MatryoshkaBatchTopKTrainer") and given.get("dict_size"):
        settings["lr"] = _LAW / (given["dict_size"] / _LAW_WIDTH) ** 0.5
    # what is subtracted there is decided by the class of the dictionary
    cls = given.get("dict_class") or (AutoEncoder if name == "StandardTrainerAprilUpdate" else None)
    if cls is not None and hasattr(cls, "subtracts_b_dec"):
        settings["apply_b_dec_to_input"] = cls.subtracts_b_dec
    settings |= {key: value for key, value in _LIMITED.items() if key in names and value < steps}
    if "schedule" not in given and given.get("decay_start") is None:
        settings["schedule"] = "constant"  # the warm-up, and no decay
    left = {
        key: value for key, value in settings.items()
        if key in names and (key not in given or (key == "lr" and given[key] is None))
    }  # fmt: skip
    logger.info(
        "%s with layer and lm_name is read as a script of dictionary-learning 0.1, with its %s. Leave layer and "
        "lm_name out for the defaults of this version.",
        trainer.__name__, ", ".join(f"{key}={value!r}" for key, value in left.items()),
    )  # fmt: skip
    return {**given, **left}


def meaning_of_none(names: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in which a None means what it meant in 0.1: no decay, no warm-up."""
    found = dict(given)
    if "decay_start" in found and found["decay_start"] is None and "decay_start" in names:
        del found["decay_start"]
        if found.get("schedule", "linear") == "linear":
            found["schedule"] = "constant"
    if "sparsity_warmup_steps" in found and found["sparsity_warmup_steps"] is None:
        found["sparsity_warmup_steps"] = 0
    return found
