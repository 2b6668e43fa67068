"""What a sweep trains: methods, and values of their settings; every combination is meant."""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dictionary_learning.config import BaseConfig, field_types
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.trainers import TRAINERS, OptimizationConfig
from dictionary_learning.trainers.recipes import RECIPES

_CHOOSES = ("trainer", "recipe")
"""Keys of a method that say what it is; by default its own name does."""


class Point(NamedTuple):
    """One combination."""

    method: str
    """The name that the sweep gives the method."""
    factors: Mapping[str, Any]
    """The settings that the sweep varies for this method."""
    config: OptimizationConfig
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Further settings, of which other methods have several values."""

    @property
    def name(self) -> str:
        """The method, and what is varied."""
        return " ".join([self.method, *(f"{key}={_shown(value)}" for key, value in self.factors.items())])


def with_fixed(points: Iterable[Point]) -> list[Point]:
    """Returns points that know their one value of settings which other methods vary."""
    found = list(points)
    varied = list(dict.fromkeys(key for point in found for key in point.factors))
    known = [{key: getattr(point.config, key, None) for key in varied if key not in point.factors} for point in found]
    told = [{key: value for key, value in one.items() if value is not None} for one in known]
    return [point._replace(fixed=one) for point, one in zip(found, told, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(BaseConfig):
    """The methods of a sweep, and its grid.

    A list means each of its values; of a setting that is a list itself, a list of lists does.
    """

    methods: Mapping[str, Any]
    """For each method its settings, as in its typed config: `{"top_k": {"k": [16, 32]}}`. The name
    is one of a trainer or recipe, unless the settings have `trainer` or `recipe`."""
    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of every method: `{"dict_size": [4096, 16384], "seed": [0, 1, 2]}`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise ConfigError("Got a sweep without methods. Give at least one, as methods={'top_k': {'k': [16, 32]}}.")
        self.points()  # raises now for what cannot be used

    def points(self) -> list[Point]:
        """Returns every combination, in the order of the methods and of their settings.

        Raises:
            ConfigError: A name or value cannot be used, or a combination occurs twice.
        """
        found = with_fixed(point for name in self.methods for point in self._of_method(str(name)))
        names = [point.name for point in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"The sweep has '{name}' twice. Give each value of a setting once.")
        return found

    def _of_method(self, method: str) -> Iterator[Point]:
        own: Any = {} if self.methods[method] is None else self.methods[method]
        if not isinstance(own, Mapping):
            raise ConfigError(f"Got {own!r} for the method '{method}'; give a mapping from its settings to values.")
        own = dict(own)
        chosen = {key: own.pop(key) for key in _CHOOSES if key in own}
        build = _builder(method, chosen)
        for key in self.grid:
            if key in own:
                raise ConfigError(f"The sweep has '{key}' for '{method}', and in its grid. Give it in one place.")
        config = type(build({}))
        values = {name: _values(method, config, name, value) for name, value in {**own, **self.grid}.items()}
        varied = [name for name, each in values.items() if len(each) > 1]
        for combination in itertools.product(*values.values()):
            settings = dict(zip(values, combination, strict=True))
            point = Point(method, {name: settings[name] for name in varied}, build(settings))
            yield point._replace(config=point.config.replace(wandb_name=point.config.wandb_name or point.name))


def _builder(method: str, chosen: Mapping[str, Any]) -> typing.Callable[[Mapping[str, Any]], OptimizationConfig]:
    """Returns the function from settings to the typed config of a method."""
    if len(chosen) > 1:
        raise ConfigError(f"Got trainer and recipe for the method '{method}'. Give one of them.")
    ((kind, name),) = chosen.items() or {"": method}.items()
    if kind != "trainer" and name in RECIPES:
        recipe = RECIPES[name]
        return lambda settings: _told(method, recipe, settings)
    if kind == "recipe" or name not in TRAINERS:
        known = RECIPES if kind == "recipe" else [*TRAINERS, *(() if kind else RECIPES)]
        raise UnknownNameError(kind or "trainer or recipe", str(name), known)
    config = TRAINERS[name].Config
    return lambda settings: _told(method, lambda **given: config.from_dict(given), settings)


def _told(method: str, build: typing.Callable[..., Any], settings: Mapping[str, Any]) -> OptimizationConfig:
    """Builds a config; an error says which method it is of."""
    try:
        return build(**settings)
    except UnknownNameError:
        raise
    except ConfigError as error:
        raise ConfigError(f"The method '{method}' of the sweep cannot have {dict(settings)}: {error}") from error


def _values(method: str, config: type[OptimizationConfig], name: str, given: Any) -> list[Any]:
    """Returns the values of a setting; a list is one value where the setting is a list itself."""
    hints = field_types(config)
    if name not in hints:
        having = sorted(n for n, cls in TRAINERS.items() if name in field_types(cls.Config))
        if having:
            raise ConfigError(
                f"The method '{method}' has no setting '{name}', which is one of {', '.join(having)}. Give it to those "
                "methods alone, and not in the grid."
            )
        raise UnknownNameError(f"setting of the method '{method}'", name, hints)
    if not isinstance(given, (list, tuple)):
        return [given]
    values: list[Any] = list(given)
    if not values:
        raise ConfigError(f"Got no value of '{name}' for the method '{method}'. Give at least one, or leave it out.")
    is_list = any(typing.get_origin(option) is tuple for option in (hints[name], *typing.get_args(hints[name])))
    return [values] if is_list and not any(isinstance(value, (list, tuple)) for value in values) else values


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
