"""Arguments of trainers in dictionary-learning and SAELens, and what `loss` returns there."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor

from dictionary_learning.compat._plug_ins import PlugInConfig, split_arguments
from dictionary_learning.compat._trainer_defaults import ORDERS, is_older, meaning_of_none, with_older_defaults
from dictionary_learning.config import UnknownNameError
from dictionary_learning.dictionaries import DICTIONARIES, WIRINGS, SparseAutoencoder
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense
from dictionary_learning.trainers._base import Trainer
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._run_info import FACTS, RunInfo
from dictionary_learning.trainers._sae_config import TrainerConfig

ALIASES = {
    "lr_scheduler_name": "schedule",
    "lr_warm_up_steps": "warmup_steps",
    "normalize_activations": "normalize",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "top_k_aux": "k_aux",
    "normalize_sae_decoder": "unit_norm_decoder",
    "decoder_heuristic_init_norm": "decoder_init_norm",
    "k_decay_steps": "k_anneal_steps",
    "l1_penalty": "sparsity_penalty",
    "l1_coefficient": "sparsity_penalty",
    "initial_sparsity_penalty": "sparsity_penalty",
    "l1_warm_up_steps": "sparsity_warmup_steps",
    "jumprelu_bandwidth": "bandwidth",
    "jumprelu_init_threshold": "initial_threshold",
}
"""Names of settings elsewhere, and ours."""


class LossLog(NamedTuple):
    """A loss in dictionary-learning's form."""

    x: Tensor
    x_hat: Tensor
    f: Tensor
    losses: dict[str, float]


def split_options(
    config: type[OptimizationConfig], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns settings and facts of the run from a dict config, with older names translated.

    Raises:
        UnknownNameError: A name is neither.
    """
    if issubclass(config, PlugInConfig):
        return split_arguments(config, options)
    known = {field.name for field in fields(config)}
    renamed: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, value in _without_class_names(config, options).items():
        own = ALIASES[name] if name in ALIASES and name not in known else name
        if own in renamed and value != renamed[own]:
            raise ConfigError(f"Got two values of {own}, also as {name}: {renamed[own]!r} and {value!r}. Give one.")
        renamed[own], said[own] = value, name
    for name in renamed:
        if name not in known and name not in FACTS:
            _refuse_argument(config.trainer_class, name)
            raise UnknownNameError(f"option of {config.__qualname__}", said[name], [*known, *FACTS])
    if is_older(renamed):
        renamed = with_older_defaults(config.trainer_class, known, renamed)
    settings = {name: value for name, value in renamed.items() if name in known}
    return settings, {name: value for name, value in renamed.items() if name in FACTS}


def _refuse_argument(trainer: Any, name: str) -> None:
    """Refuses an argument that a class in the form of 0.1 adds to its method's `__init__`."""
    owner = next((cls for cls in trainer.__mro__ if name in _arguments_of(vars(cls).get("__init__"))), None)
    if owner is not None:
        raise ConfigError(
            f"{name} is an argument of {owner.__name__}.__init__, which is not called with it: settings of a method "
            f"are fields of its Config. Write in {owner.__name__}: class Config({owner.__mro__[1].__name__}.Config): "
            f"{name}: float = 0.0, and read self.settings.{name} (docs/add_a_method.md)."
        )


def _arguments_of(method: Any) -> Any:
    return inspect.signature(method).parameters if inspect.isfunction(method) else ()


def _without_class_names(config: type[OptimizationConfig], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of saved settings too, which name classes; `dict_class` becomes one."""
    own = meaning_of_none({field.name for field in fields(config)}, options)
    trainer, asked = own.pop("trainer_class", None), config.trainer_class
    if trainer not in (None, asked, asked.__name__):
        raise ConfigError(f"Got trainer_class={trainer!r} for {asked.__name__}. Leave it out, or name its trainer.")
    if not isinstance(own.get("dict_class"), str):
        return own
    cls, wiring = DICTIONARIES[own.pop("dict_class")], own.get("wiring") or "autoencoder"
    if issubclass(cls, SparseAutoencoder) and wiring == "autoencoder":
        own["dict_class"] = cls
    # other classes follow from the wiring, from what is trained further, or from the method
    elif own.get("finetune") is None and issubclass(config, TrainerConfig) and cls is not WIRINGS[wiring].makes:
        raise ConfigError(f"Got dict_class={cls.__name__!r} with wiring={wiring!r}. Leave one of them out.")
    return own


def read_arguments(
    trainer: type[Trainer], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[OptimizationConfig, RunInfo]:
    """Returns config and facts of `Trainer(steps, activation_dim, dict_size, [k,] layer, ...)`.

    Raises:
        ConfigError: A fact is missing, or there are too many positional arguments.
    """
    while arguments and arguments[-1] is None and len(arguments) <= 2:  # those that were left out
        arguments = arguments[:-1]
    if arguments and isinstance(arguments[0], OptimizationConfig):
        raise ConfigError(f"{trainer.__name__} got a config and {arguments[1:]!r}; give the facts of the run by name.")
    has_k = "k" in {field.name for field in fields(trainer.Config)}
    names = ("steps", "activation_dim", "dict_size", *(("k",) if has_k else ()), "layer", "lm_name")
    older = next((ORDERS[cls.__name__] for cls in trainer.__mro__ if cls.__name__ in ORDERS), None)
    names = names if older is None else tuple(older.split())
    if len(arguments) > len(names):
        raise ConfigError(
            f"{trainer.__name__} got {len(arguments)} positional arguments; it takes {', '.join(names)} in this order. "
            "Give the others by name."
        )
    placed = dict(zip(names, arguments, strict=False))
    twice = [name for name in placed if name in options]
    if twice:
        raise ConfigError(f"{trainer.__name__} got {', '.join(twice)} by position and by name. Give each once.")
    settings, facts = split_options(trainer.Config, {**placed, **options})
    device = facts.get("device")
    facts["device"] = None if device is None else str(device)
    return trainer.Config.from_dict(settings), RunInfo.from_dict(facts)


def older_loss(
    trainer: Trainer,
    x: Tensor,
    y: Any = None,
    *,
    step: int | None = None,
    logging: bool = False,
    lengths: Tensor | None = None,
) -> Any:
    """Returns `trainer.loss(x, step, logging=...)` of dictionary-learning, with schedules at step.

    The value that is differentiated; with `logging`, `LossLog(x, x_hat, f, losses)` with dense
    latents and plain numbers.
    """
    at = y if step is None and isinstance(y, int) else step
    with trainer.at_step(at):
        loss = trainer.loss(x, y if isinstance(y, Tensor) else None, lengths=lengths)
    if not logging:
        return loss.total
    losses = {name: float(term.detach()) for name, term in {**loss.terms, "loss": loss.total}.items()}
    return LossLog(x, loss.reconstruction.outputs, to_dense(loss.reconstruction.latents), losses)
