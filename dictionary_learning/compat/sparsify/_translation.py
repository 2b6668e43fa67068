"""From settings of sparsify to configs of this package: what counts there counts the same here."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from dictionary_learning.compat.sparsify.config import TrainConfig
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop import load_many
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site, natural_key
from dictionary_learning.trainers import GroupMaxTrainer, OptimizationConfig, TrainerTopK

_WIDTH = 2**14
_RATES = {"signum": 5e-3, "adam": 2e-4}
"""Learning rates of sparsify at 2^14 latents."""
_MUON = 2e-3
_START = 10
"""k decays from this many times the width."""


def hookpoints_of(cfg: TrainConfig, model: TracedModel) -> dict[str, Site]:
    """Returns the module of each hookpoint by its name there, in natural order.

    Raises:
        ConfigError: No module fits.
    """
    prefix, names = _base_model(model.module)
    if cfg.hookpoints:
        # as there: a * stands for dots too
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in cfg.hookpoints)]
        chosen = sorted(chosen, key=natural_key)
    else:
        chosen = [site.path.removeprefix(prefix) for site in model.layers(cfg.layers or None)]
    if not chosen:
        raise ConfigError(f"No module of the model fits {', '.join(cfg.hookpoints)}. Give other hookpoints.")
    return {name: model.sites(f"{prefix}{name}", "out")[0] for name in chosen[:: cfg.layer_stride]}


def _base_model(module: Any) -> tuple[str, list[str]]:
    """Returns the prefix of the model without its head, and the names of its modules."""
    base = getattr(module, "base_model", module)
    path = next((path for path, one in module.named_modules() if one is base), "")
    return f"{path}." if path else "", [name for name, _ in base.named_modules() if name]


def configs_of(cfg: TrainConfig, widths: Mapping[str, int], sites: Mapping[str, Site]) -> dict[str, OptimizationConfig]:
    """Returns the config of each coder by its name: the hookpoint, and one of several seeds."""
    trained = _trained(cfg, list(widths)) if cfg.finetune is not None else {}
    found: dict[str, OptimizationConfig] = {}
    for name, width in widths.items():
        for seed in cfg.init_seeds:
            own = name if len(cfg.init_seeds) == 1 else f"{name}/seed{seed}"
            found[own] = _config(cfg, width, sites[name], seed, own, trained.get(name))
    return found


def _config(cfg: TrainConfig, width: int, site: Site, seed: int, name: str, trained: Any) -> OptimizationConfig:
    sae, size = cfg.sae, cfg.sae.size(width)
    settings: dict[str, Any] = {
        "k": min(sae.k, size),
        "dict_size": size if trained is None else trained.dict_size,
        "seed": seed,
        "wandb_name": name,
        "finetune": trained,
        "normalize": "none",
        "loss_fn": "reconstruction" if cfg.loss_fn == "fvu" else cfg.loss_fn,
        "micro_acc_steps": cfg.micro_acc_steps,
        "grad_acc_steps": cfg.grad_acc_steps,
        "auxk_alpha": cfg.auxk_alpha,
        "dead_feature_threshold": cfg.dead_feature_threshold,
        "b_dec_init_method": "mean",
        "scale_encoder": False,
        "encoder_lr_factor": 1.0,
        "decoder_lr_factor": 1.0,
        "max_grad_norm": None,
        **_optimizer(cfg, size),
        **_wiring(cfg, site),
    }
    # an optimizer step there is a batch for the decay of k
    decay = cfg.k_decay_steps // cfg.grad_acc_steps
    if decay:
        settings |= {"k_anneal_steps": decay, "k_anneal_start": max(min(size, width * _START), settings["k"])}
    if sae.activation == "groupmax":
        if decay:
            raise ConfigError("k_decay_steps with activation='groupmax': groups of one size need a k that divides the "
                              "latents, which no decaying k does. Use topk.")  # fmt: skip
        return GroupMaxTrainer.Config.from_dict(settings)
    return TrainerTopK.Config.from_dict({**settings, "multi_topk": sae.multi_topk})


def _optimizer(cfg: TrainConfig, size: int) -> dict[str, Any]:
    if cfg.optimizer == "muon":
        return {"optimizer": "muon", "lr": cfg.lr or _MUON, "schedule": "linear", "warmup_steps": 0, "decay_start": 0}
    if cfg.optimizer not in _RATES:
        raise ConfigError(f"Got optimizer={cfg.optimizer!r}; it is signum, adam or muon.")
    lr = cfg.lr or _RATES[cfg.optimizer] / (size / _WIDTH) ** 0.5
    if cfg.optimizer == "signum":
        return {"optimizer": "signum_schedule_free", "lr": lr, "schedule": "constant", "warmup_steps": 0}
    plain = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    warmup = cfg.lr_warmup_steps
    return {"optimizer": "adam", "lr": lr, "schedule": "linear", "warmup_steps": warmup, "decay_start": warmup, **plain}


def _wiring(cfg: TrainConfig, site: Site) -> dict[str, Any]:
    sae = cfg.sae
    if not sae.transcode:
        return {"site": str(site), "wiring": "autoencoder", "unit_norm_decoder": sae.normalize_decoder}
    wiring = "skip_transcoder" if sae.skip_connection else "transcoder"
    return {
        "site": str(Site(site.path, "in")),
        "target_site": str(Site(site.path, "out")),
        "wiring": wiring,
        "unit_norm_decoder": False,
    }


def _trained(cfg: TrainConfig, names: Sequence[str]) -> dict[str, Any]:
    """Returns the dictionaries to start from, by hookpoint."""
    assert cfg.finetune is not None
    found = load_many(os.fspath(cfg.finetune))
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(
            f"'{cfg.finetune}' has no coder of {', '.join(missing)}; it has {', '.join(found)}. Choose hookpoints "
            "that it has."
        )
    return {name: found[name] for name in names}
