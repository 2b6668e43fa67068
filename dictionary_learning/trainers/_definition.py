"""What the definition of a trainer's class does, and how its arguments are read."""

import dataclasses
import inspect
from typing import Any

from dictionary_learning.config import is_same_definition
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._run_info import FACTS, RunInfo

_CALLED = {"nonlinearity": (), "objective": ("batch",), "after_step": ("parts",)}
"""Methods that a plug-in writes, and the arguments that they are called with."""


def own_config(trainer: type[Any]) -> type[OptimizationConfig]:
    """Returns the Config of a trainer's own, which builds this trainer and no other."""
    config: Any = vars(trainer).get("Config")
    if config is None or _is_of_others(config, trainer):
        names = {"__module__": trainer.__module__, "__qualname__": f"{trainer.__qualname__}.Config"}
        config = type("Config", (trainer.Config,), {**names, "__doc__": f"Settings of {trainer.__name__}."})
    if "__dataclass_fields__" not in vars(config):
        config = dataclasses.dataclass(frozen=True, kw_only=True)(config)
    config.trainer_class = trainer
    return config


def makes_own_steps(trainer: type[Any]) -> bool:
    """Returns whether a class was written for dictionary-learning 0.1, with an `update`."""
    own: Any = vars(trainer)
    inherits = any(getattr(base, "is_plug_in", False) for base in trainer.__mro__[1:])
    is_abstract = getattr(getattr(trainer, "objective", None), "__isabstractmethod__", False)
    return inherits or ("update" in own and is_abstract and "objective" not in own)


def check_methods(trainer: type[Any]) -> None:
    """Checks that the methods which a class defines can be called as they will be.

    Raises:
        ConfigError: one takes other arguments.
    """
    _refuse_older(trainer)
    for name, given in _CALLED.items():
        method: Any = vars(trainer).get(name)
        try:
            if inspect.isfunction(method):
                inspect.signature(method).bind("self", *given)
        except TypeError as error:
            called = f"{trainer.__name__}.{name} is called as {name}({', '.join(given)})"
            raise ConfigError(f"{called}; it cannot be: {error}.") from error


def _refuse_older(trainer: type[Any]) -> None:
    """Refuses a `loss` or `update` of dictionary-learning 0.1 on a method of this package."""
    for name, theirs in {"loss": ("step", "logging"), "update": ()}.items():
        method: Any = vars(trainer).get(name)
        if not inspect.isfunction(method):
            continue
        parameters = inspect.signature(method).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or "model_loss_fn" in parameters
        if takes_all and not any(older in parameters for older in theirs):
            continue
        base = next(c for c in trainer.__mro__[1:] if c.__name__ != trainer.__name__)
        raise ConfigError(
            f"{trainer.__name__}.{name}({', '.join(list(parameters)[1:])}) is written for dictionary-learning 0.1. A "
            f"subclass of {base.__name__} writes `objective(self, batch)` and `after_step(self, parts)` here "
            "(docs/add_a_method.md). To keep steps of your own, subclass SAETrainer and write `update(self, step, x)`."
        )


def read_arguments(
    trainer: type[Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[OptimizationConfig, RunInfo]:
    """Returns config and facts, given as a config and facts by name, or as by an older script."""
    config, *rest = arguments
    if not isinstance(config, OptimizationConfig) or rest != [None]:
        from dictionary_learning.compat._trainer_arguments import read_arguments as read_older

        return read_older(trainer, arguments, options)
    facts = {name: value for name, value in options.items() if name in FACTS}
    changes = {name: value for name, value in options.items() if name not in FACTS}
    return config.replace(**changes) if changes else config, RunInfo.from_dict(facts)


def _is_of_others(config: Any, trainer: type[Any]) -> bool:
    """Returns whether a config is that of another trainer, or a base of several of ours."""
    owner = vars(config).get("trainer_class")
    if owner is not None:
        return not is_same_definition(owner, trainer)
    return config.__module__ != trainer.__module__ and config.__module__.startswith("dictionary_learning.")
