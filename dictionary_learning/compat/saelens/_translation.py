"""From fields of SAELens to configs and arguments of this package, each in its unit."""

import logging
from typing import Any

import torch

from dictionary_learning.compat.saelens._fields import IGNORED, MODELS, OF_TRANSFORMER_LENS, REFUSED
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.trainers import (
    AbsTopKTrainer,
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    MatchingPursuitTrainer,
    MatryoshkaBatchTopKTrainer,
    OptimizationConfig,
    StandardTrainer,
    TopKTrainer,
)

logger = logging.getLogger(__name__)

_TRAINERS: dict[str, Any] = {
    "standard": StandardTrainer,
    "gated": GatedSAETrainer,
    "jumprelu": JumpReluTrainer,
    "topk": TopKTrainer,
    "abstopk": AbsTopKTrainer,
    "batchtopk": BatchTopKTrainer,
    "matryoshka_batchtopk": MatryoshkaBatchTopKTrainer,
    "matching_pursuit": MatchingPursuitTrainer,
}
_OF_FLAT = ("standard", "gated", "jumprelu", "topk", "batchtopk")
"""Architectures of SAELens 3 to 5."""
_PENALTIES = {"step": "l0", "tanh": "tanh", "quadratic": "quadratic_l0"}
_CYCLES = {1: "cosine", 4: "cosine_restarts"}


def check_fields(cfg: Any) -> None:
    """Refuses fields that have no counterpart, and warns of those without effect.

    Raises:
        ConfigError: A field cannot be translated; it says what to use.
    """
    for owner in {id(one): one for one in (cfg, cfg.coder, cfg.logging)}.values():
        for name, value in owner.to_dict().items():
            if name in REFUSED and value not in REFUSED[name][0]:
                raise ConfigError(f"{name}={value!r} of SAELens is not read here: {REFUSED[name][1]}.")
            if name in IGNORED and value not in IGNORED[name][0]:
                logger.warning("%s=%r has no effect: %s.", name, value, IGNORED[name][1])
    if cfg.is_nested and "device" in cfg.coder.given and cfg.coder.device != cfg.device:
        own = cfg.coder.device
        logger.warning("device=%r of the coder has no effect: it is trained on the run's, %r.", own, cfg.device)
    _dict_size(cfg, 1)
    for owner in (cfg, cfg.coder):
        dtype = str(owner.dtype).removeprefix("torch.")
        if dtype != "float32":
            raise ConfigError(
                f"dtype={dtype!r}: dictionaries are trained in float32. Leave it out; autocast=True makes products in "
                "bfloat16, autocast_lm=True loads the model in bfloat16."
            )


def model_of(cfg: Any) -> str:
    """Returns the model's name on the hub."""
    if cfg.model_name in OF_TRANSFORMER_LENS:
        raise ModelError(
            f"'{cfg.model_name}' is a model of TransformerLens, which transformers does not have. Choose another, or "
            "give a module as override_model."
        )
    name: str = cfg.model_name
    return MODELS.get(name, name)


def steps_of(cfg: Any) -> int:
    """Returns the number of batches."""
    steps = cfg.training_tokens // cfg.train_batch_size_tokens
    if steps < 1:
        raise ConfigError(
            f"training_tokens={cfg.training_tokens} are fewer than a batch of train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens}. Raise the former."
        )
    return steps


def trainer_config(cfg: Any, width: int, site: str) -> OptimizationConfig:
    """Returns the config of the trainer.

    Raises:
        ConfigError: A field does not fit the model, or cannot be translated.
    """
    coder, batch = cfg.coder, cfg.train_batch_size_tokens
    if coder.d_in not in (None, width):
        raise ConfigError(f"Got d_in={coder.d_in}; the activations at {site} have width {width}. Leave it out.")
    architecture = coder.architecture if cfg.is_nested else _flat_architecture(cfg)
    settings: dict[str, Any] = {
        "site": site,
        "seed": cfg.seed,
        "wandb_name": cfg.logging.run_name,
        "finetune": cfg.from_pretrained_path,
        "lr": cfg.lr,
        "beta1": cfg.adam_beta1,
        "beta2": cfg.adam_beta2,
        "eps": 1e-8,
        "max_grad_norm": 1.0,
        "normalize": coder.normalize_activations,
        "dict_size": _dict_size(cfg, width),
        "apply_b_dec_to_input": coder.apply_b_dec_to_input,
        # windows are of steps there, of tokens here; only the window decides which latents are dead
        "dead_feature_threshold": cfg.dead_feature_window * batch,
        "feature_sampling_window": cfg.feature_sampling_window * batch,
        "scale_encoder": False,
        **_schedule(cfg),
        **(_nested(coder, architecture, width) if cfg.is_nested else _flat(cfg, architecture, width)),
    }
    if cfg.feature_sampling_method is not None:
        settings["resample_steps"] = cfg.feature_sampling_window
    if cfg.from_pretrained_path is not None:
        settings.pop("dict_size")
    config = _TRAINERS[architecture].Config
    # there, settings of other methods beside its own change nothing
    known = config.__dataclass_fields__.keys() - config.unread.keys()
    return config.from_dict({name: value for name, value in settings.items() if name in known})


def _dict_size(cfg: Any, width: int) -> int:
    """Returns the number of latents; raises ConfigError where two fields say it."""
    size, factor = cfg.coder.d_sae, 4 if cfg.is_nested else cfg.expansion_factor
    if size is not None and cfg.given.get("expansion_factor") is not None:
        raise ConfigError(f"Got d_sae={size} and expansion_factor={factor}, which both say the latents. Give one.")
    for name, value in (("d_sae", size), ("expansion_factor", factor)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"Got {name}={value!r}; give a positive whole number, or leave it out.")
    if size is not None:
        return int(size)
    return width * int(4 if factor is None else factor)  # None stands for that there


def _flat_architecture(cfg: Any) -> str:
    kind = str(cfg.activation_fn).lower()
    if kind not in ("relu", "topk", "batchtopk"):
        raise ConfigError(f"Got activation_fn={cfg.activation_fn!r}; relu, topk and batchtopk are trained here.")
    if cfg.architecture not in _OF_FLAT:
        raise ConfigError(
            f"Got architecture={cfg.architecture!r}; known are {', '.join(_OF_FLAT)}. Further ones have a config of "
            "their own in SAELens 6: give sae=."
        )
    return kind if cfg.architecture == "standard" and kind != "relu" else cfg.architecture


def _flat(cfg: Any, architecture: str, width: int) -> dict[str, Any]:
    """Returns settings of SAELens 3 to 5, and of mats_sae_training."""
    settings: dict[str, Any] = {
        "b_dec_init_method": cfg.b_dec_init_method,
        "unit_norm_decoder": cfg.normalize_sae_decoder,
        "orthogonal_init": cfg.decoder_orthogonal_init,
        "decoder_init_norm": cfg.decoder_init_norm or (0.1 if cfg.decoder_heuristic_init else None),
        "init_encoder_as_decoder_transpose": cfg.init_encoder_as_decoder_transpose,
        "use_ghost_grads": cfg.use_ghost_grads,
    }
    if architecture in ("topk", "batchtopk"):
        kwargs = cfg.activation_fn_kwargs or {}
        if "k" not in kwargs:
            raise ConfigError("activation_fn='topk' needs activation_fn_kwargs={'k': ...}.")
        return {**settings, "k": int(kwargs["k"]), "encoder_lr_factor": 1.0, "decoder_lr_factor": 1.0}
    # mats_sae_training averages errors over dimensions, which are summed here
    unit = width if cfg.is_mats else 1
    settings |= {
        "sparsity_penalty": cfg.l1_coefficient * unit,
        "sparsity_warmup_steps": cfg.l1_warm_up_steps,
        "mse_loss_normalization": cfg.mse_loss_normalization,
        "scale_sparsity_penalty_by_decoder_norm": cfg.scale_sparsity_penalty_by_decoder_norm,
        "initial_threshold": cfg.initial_threshold,
        "bandwidth": cfg.jumprelu_bandwidth,
    }
    if architecture == "jumprelu":
        settings.pop("scale_sparsity_penalty_by_decoder_norm")  # norms do not count there
        return {**settings, "sparsity_function": "l0"}
    return {**settings, **_power(cfg.lp_norm)}


def _nested(coder: Any, architecture: str, width: int) -> dict[str, Any]:
    """Returns settings of SAELens 6."""
    settings: dict[str, Any] = {
        "b_dec_init_method": "zeros",
        "unit_norm_decoder": False,
        "decoder_init_norm": coder.decoder_init_norm,
    }
    if architecture in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk"):
        settings |= {"k": int(coder.k), "rank_by_norm": coder.rescale_acts_by_decoder_norm}
        settings |= {"encoder_lr_factor": 1.0, "decoder_lr_factor": 1.0, "auxk_alpha": coder.aux_loss_coefficient}
        if architecture in ("batchtopk", "matryoshka_batchtopk"):
            # threshold <- (1 - lr) threshold + lr * the batch's, from the first step
            settings |= {"threshold_beta": 1 - coder.topk_threshold_lr, "threshold_start_step": 0}
        if architecture == "matryoshka_batchtopk":
            ends = sorted({*coder.matryoshka_widths, coder.d_sae or width * 4})
            sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            settings |= {"group_fractions": tuple(size / ends[-1] for size in sizes)}
            settings |= {"group_weights": (1.0,) * len(sizes)}  # SAELens does not divide by their number
        return settings
    if architecture == "jumprelu":
        mode = coder.jumprelu_sparsity_loss_mode
        if mode not in _PENALTIES:
            raise ConfigError(f"Got jumprelu_sparsity_loss_mode={mode!r}; it is one of {', '.join(_PENALTIES)}.")
        further = {"target_l0": coder.target_l0 or 20.0} if mode == "quadratic" else {}
        further |= {"tanh_scale": coder.jumprelu_tanh_scale} if mode == "tanh" else {}
        return {
            **settings, **further, "sparsity_function": _PENALTIES[mode], "sparsity_penalty": coder.l0_coefficient,
            "sparsity_warmup_steps": coder.l0_warm_up_steps, "bandwidth": coder.jumprelu_bandwidth,
            "initial_threshold": coder.jumprelu_init_threshold, "jumprelu_ste_to_input": coder.jumprelu_ste_to_input,
            "pre_act_loss_coefficient": coder.pre_act_loss_coefficient or 0.0,
            "scale_sparsity_penalty_by_decoder_norm": mode == "tanh",
        }  # fmt: skip
    if architecture == "matching_pursuit":
        if coder.max_iterations is None:
            raise ConfigError("matching_pursuit needs max_iterations here: the number of latents per token.")
        return {**settings, "k": int(coder.max_iterations)}
    # the penalty is weighted by decoder norms in every version-6 coder with one
    weighted = {"scale_sparsity_penalty_by_decoder_norm": True, "sparsity_warmup_steps": coder.l1_warm_up_steps}
    power = _power(coder.lp_norm) if architecture == "standard" else {}
    return {**settings, **weighted, **power, "sparsity_penalty": coder.l1_coefficient}


def _power(lp_norm: float) -> dict[str, Any]:
    return {} if lp_norm == 1 else {"sparsity_function": "lp_root", "lp_norm": float(lp_norm)}


def _schedule(cfg: Any) -> dict[str, Any]:
    name, steps, warmup = str(cfg.lr_scheduler_name).lower(), steps_of(cfg), cfg.lr_warm_up_steps
    decay = cfg.lr_decay_steps
    if warmup + (decay or 0) > steps:
        raise ConfigError(
            f"Got lr_warm_up_steps={warmup} and lr_decay_steps={decay}, and training_tokens={cfg.training_tokens} in "
            f"batches of {cfg.train_batch_size_tokens} are {steps} steps. Lower the former, or train longer."
        )
    if name in ("constant", "constantwithwarmup"):
        if decay:
            return {"schedule": "linear", "warmup_steps": warmup, "decay_start": max(steps - decay, 0)}
        return {"schedule": "constant", "warmup_steps": warmup}
    if name not in ("cosineannealing", "cosineannealingwithwarmup", "cosineannealingwarmrestarts"):
        raise ConfigError(f"Got lr_scheduler_name={cfg.lr_scheduler_name!r}; use constant or cosineannealing.")
    cycles = cfg.n_restart_cycles if "restarts" in name else 1
    if decay or cfg.lr_end not in (None, cfg.lr / 10) or cycles not in _CYCLES:
        raise ConfigError(
            f"{name} with lr_decay_steps={decay}, lr_end={cfg.lr_end} and n_restart_cycles={cycles} is not read: "
            "the cosine here ends at a tenth of lr, in one cycle or four. Leave them out, or give TRAINER.Config("
            "schedule=function)."
        )
    return {"schedule": _CYCLES[cycles], "warmup_steps": warmup}


def save_steps(cfg: Any) -> list[int]:
    """Returns the steps at which checkpoints are due: evenly spaced, without the ends."""
    if not cfg.n_checkpoints:
        return []
    tokens = range(0, cfg.training_tokens, max(cfg.training_tokens // cfg.n_checkpoints, 1))[1:]
    steps = {-(-n // cfg.train_batch_size_tokens) for n in tokens}
    return sorted(step for step in steps if 0 < step < steps_of(cfg))


def autocast_dtype(cfg: Any) -> torch.dtype:
    """Returns the dtype of products."""
    return torch.bfloat16 if cfg.autocast else torch.float32
