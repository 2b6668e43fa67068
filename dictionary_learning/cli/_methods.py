"""What `dictionary-learning train` trains: one method by its options, or several by a run file."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dictionary_learning.cli._arguments import read_configs
from dictionary_learning.cli._parser import option_of
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.trainers import OptimizationConfig, Trainer

DEFAULT = "top_k"
"""The trainer that is meant where none is named."""
FILLED_IN = (
    "activation_dim", "steps", "site", "target_site", "site_dims", "output_dims", "device", "layer", "lm_name",
    "submodule_name", "wandb_name", "dict_class",
)  # fmt: skip
"""Settings of a trainer that the run decides."""


class Method(NamedTuple):
    """What is trained: a trainer, and the recipe if one was chosen."""

    name: str
    trainer: "type[Trainer]"
    recipe: "Callable[..., OptimizationConfig] | None" = None

    def configs(self, namespace: argparse.Namespace) -> "list[OptimizationConfig]":
        """Returns a config for each combination of the values that were given."""
        # the recipe gets the options, as in Python: it may derive others from them
        return read_configs(namespace, self.trainer.Config, self.recipe)

    def described(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a run file says of it."""
        return {"recipe" if self.recipe else "trainer": self.name, **given}


class Methods(NamedTuple):
    """Several methods, which a run file names with their settings, as a sweep's file does."""

    methods: Mapping[str, Any]
    grid: Mapping[str, Any]

    name = "methods"
    recipe = None

    def configs(self, namespace: argparse.Namespace) -> "list[OptimizationConfig]":
        """Returns a config for each method, and each combination of its settings."""
        from dictionary_learning.sweeps import SweepConfig

        configs = [point.config for point in SweepConfig(methods=self.methods, grid=self.grid).points()]
        namespace.given |= {name for each in (*self.methods.values(), self.grid) for name in each or ()}
        return configs

    def described(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a run file says of them."""
        return {**given, "methods": dict(self.methods), **({"grid": dict(self.grid)} if self.grid else {})}


def method_of(trainer: str | None, recipe: str | None) -> Method:
    """Returns the method that is named.

    Raises:
        ConfigError: a name is not known, or the recipe is one of another trainer.
    """
    from dictionary_learning.trainers import TRAINERS
    from dictionary_learning.trainers.recipes import RECIPES

    if recipe is None:
        name = DEFAULT if trainer is None else trainer
        return Method(name, TRAINERS[name])
    config = RECIPES[recipe]()
    if trainer is not None and TRAINERS[trainer] is not config.trainer_class:
        own = TRAINERS.name_of(config.trainer_class)
        raise ConfigError(
            f"Got --trainer {trainer} with --recipe {recipe}, which is one of {own}. Give one of the two."
        )
    return Method(recipe, config.trainer_class, RECIPES[recipe])


def own_settings(trainer: "type[Trainer]") -> list[str]:
    """Returns the settings of a trainer that not every method has."""
    from dictionary_learning.trainers import TrainerConfig

    common = {field.name for field in dataclasses.fields(TrainerConfig)}
    return [field.name for field in dataclasses.fields(trainer.Config) if field.name not in common]


def trainers_of_options() -> dict[str, list[str]]:
    """Returns the names of the trainers that have an option."""
    from dictionary_learning.trainers import TRAINERS

    found: dict[str, list[str]] = {}
    for name, trainer in TRAINERS.items():
        for field in dataclasses.fields(trainer.Config):
            if field.name not in FILLED_IN:
                found.setdefault(option_of(field.name), []).append(name)
    return found
