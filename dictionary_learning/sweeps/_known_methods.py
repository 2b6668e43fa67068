"""The methods of a benchmark on known features, given in any of the ways that name a method."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from dictionary_learning._run_setup import read_configs
from dictionary_learning.config import field_types
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.sweeps._config import Point, SweepConfig, with_fixed
from dictionary_learning.sweeps._results import SEED
from dictionary_learning.synthetic import Case
from dictionary_learning.trainers import TRAINERS, OptimizationConfig
from dictionary_learning.trainers.recipes import RECIPES

_NO_SETTINGS = (SEED, "wandb_name")
"""What does not tell two methods apart."""


def points_of(methods: Any, case: Case) -> list[Point]:
    """Returns the methods, with the case's `dict_size` and `k` where they have none.

    With another `expansion_factor` than the default `dict_size` is left out; with `finetune` both.

    Raises:
        ConfigError: A method cannot be used, or occurs twice.
    """
    if isinstance(methods, Mapping) and "methods" in methods:
        methods = SweepConfig.from_dict(cast("Mapping[str, Any]", methods))
    if isinstance(methods, SweepConfig):
        points = methods.points()
    else:
        single = isinstance(methods, (str, Mapping, OptimizationConfig))
        if not single and not isinstance(methods, Iterable):
            raise ConfigError(f"Got {methods!r} for methods; give a trainer's name, a config, or a list of them.")
        points = _told_apart([_config(one) for one in cast("Iterable[Any]", [methods] if single else methods)])
    for point in points:
        if SEED in point.factors or (isinstance(methods, SweepConfig) and _names_seed(methods)):
            raise ConfigError("A seed is that of features, rows and weights here. Give seeds (--seeds), and no seed.")
        if point.config.needs_contexts:
            raise ConfigError(f"'{point.method}' trains on contexts of a model, and synthetic rows have none.")
    return with_fixed(point._replace(config=_filled(point.config, case)) for point in points)


def _config(given: Any) -> OptimizationConfig:
    if isinstance(given, str):
        if given in TRAINERS:
            return TRAINERS[given].Config()
        if given in RECIPES:
            return RECIPES[given]().replace(wandb_name=given)
        raise UnknownNameError("trainer or recipe", given, [*TRAINERS, *RECIPES])
    ((config, _),) = read_configs(given)
    return config


def _told_apart(configs: list[OptimizationConfig]) -> list[Point]:
    """Names configs by their method, and by the settings in which those of a method differ."""
    if not configs:
        raise ConfigError("Got no method. Give at least one, such as 'top_k'.")
    named = [(config.wandb_name or TRAINERS.name_of(config.trainer_class), config) for config in configs]
    points: list[Point] = []
    for method, config in named:
        own = config.to_dict()
        others = [other.to_dict() for name, other in named if name == method]
        varied = [
            name for name in own if name not in _NO_SETTINGS and any(other.get(name) != own[name] for other in others)
        ]
        point = Point(method, {name: own[name] for name in varied}, config)
        if point.name in [one.name for one in points]:
            raise ConfigError(f"Got '{point.name}' twice. Give each method once, or names of their own by wandb_name.")
        points.append(point)
    return [point._replace(config=point.config.replace(wandb_name=point.name)) for point in points]


def _names_seed(sweep: SweepConfig) -> bool:
    return SEED in sweep.grid or any(isinstance(own, Mapping) and SEED in own for own in sweep.methods.values())


def _filled(config: OptimizationConfig, case: Case) -> OptimizationConfig:
    if config.finetune is not None:
        return config  # what is left out is that of the dictionary to start from
    known = field_types(type(config))
    given = {"dict_size": case.dict_size, "k": case.k}
    if config.expansion_factor != type(config).expansion_factor:
        del given["dict_size"]  # the factor says it
    left_out = {name: value for name, value in given.items() if name in known and not config.is_set(name)}
    return config.replace(**{name: value for name, value in left_out.items() if value is not None})
