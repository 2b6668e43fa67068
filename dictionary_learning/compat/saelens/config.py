"""Configs of SAELens 3 to 6, by their names, with the defaults of their version."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dictionary_learning.compat.saelens._fields import CODER_6, CODERS_6, FLAT, NESTED, RENAMED
from dictionary_learning.config import UnknownNameError
from dictionary_learning.errors import ConfigError


class Fields:
    """Fields that were given, and defaults for the others; an unknown name is refused."""

    defaults: ClassVar[Mapping[str, Any]] = {}

    given: dict[str, Any]
    """The fields that were given or set."""

    def __init__(self, **given: Any):
        vars(self)["given"] = {}
        for name, value in given.items():
            own = self._own_name(name)
            if own in self.given:
                raise ConfigError(f"{type(self).__name__} got {own} twice, also as {name}. Give it once.")
            setattr(self, own, value)

    def known(self) -> Mapping[str, Any]:
        """Returns the fields and their defaults."""
        return self.defaults

    def check(self, name: str, value: Any) -> None:
        """Refuses a value that a field cannot have."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = self._own_name(name)
        self.check(own, value)
        self.given[own] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "given":
            raise AttributeError(name)
        try:
            own = self._own_name(name)
        except UnknownNameError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}.") from None
        return self.given.get(own, self.known()[own])

    def _own_name(self, name: str) -> str:
        own = name if name in self.known() else RENAMED.get(name, name)
        if own not in self.known():
            raise UnknownNameError(f"field of {type(self).__name__}", name, self.known())
        return own

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields."""
        return {**self.known(), **self.given}


class LanguageModelSAERunnerConfig(Fields):
    """The config of a run: flat as in SAELens 3 to 5, or with `sae` and `logger` as in 6."""

    flat_defaults: ClassVar[Mapping[str, Any]] = FLAT
    is_mats: ClassVar[bool] = False

    def __init__(self, **given: Any):
        vars(self)["is_nested"] = "sae" in given  # no field: it decides which there are
        super().__init__(**given)

    def check(self, name: str, value: Any) -> None:
        if name == "sae" and not isinstance(value, TrainingSAEConfig):
            raise ConfigError(f"Got sae={value!r}; give a config such as StandardTrainingSAEConfig(...).")
        if name == "logger" and not isinstance(value, (LoggingConfig, type(None))):
            raise ConfigError(f"Got logger={value!r}; give a LoggingConfig(...).")

    def known(self) -> Mapping[str, Any]:
        return NESTED if self.is_nested else self.flat_defaults

    @property
    def coder(self) -> Any:
        """The fields of the coder: those of `sae`, or these."""
        return self.given["sae"] if self.is_nested else self

    @property
    def logging(self) -> Any:
        """The fields of the log: those of `logger`, or these."""
        return self.given.get("logger") or self


class LoggingConfig(Fields):
    """What SAELens 6 logs, and where."""

    defaults: ClassVar[Mapping[str, Any]] = {
        name: NESTED[name]
        for name in (
            "log_to_wandb", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb", "log_weights_to_wandb",
            "wandb_project", "wandb_id", "run_name", "wandb_entity", "wandb_log_frequency", "eval_every_n_wandb_logs",
        )
    }  # fmt: skip


class TrainingSAEConfig(Fields):
    """The config of a coder of SAELens 6."""

    architecture: ClassVar[str] = ""

    def __init_subclass__(cls, architecture: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.architecture = architecture
        cls.defaults = {**CODER_6, **CODERS_6[architecture]}


class StandardTrainingSAEConfig(TrainingSAEConfig, architecture="standard"):
    """ReLU with a penalty."""


class GatedTrainingSAEConfig(TrainingSAEConfig, architecture="gated"):
    """Gates."""


class TopKTrainingSAEConfig(TrainingSAEConfig, architecture="topk"):
    """The k largest latents."""


class AbsTopKTrainingSAEConfig(TrainingSAEConfig, architecture="abstopk"):
    """The k latents of the largest absolute values."""


class BatchTopKTrainingSAEConfig(TrainingSAEConfig, architecture="batchtopk"):
    """The k * batch largest latents of a batch."""


class MatryoshkaBatchTopKTrainingSAEConfig(TrainingSAEConfig, architecture="matryoshka_batchtopk"):
    """BatchTopK, of which each prefix is a dictionary."""


class JumpReLUTrainingSAEConfig(TrainingSAEConfig, architecture="jumprelu"):
    """A threshold for each latent."""


class MatchingPursuitTrainingSAEConfig(TrainingSAEConfig, architecture="matching_pursuit"):
    """Latents are chosen one after another."""


@dataclasses.dataclass
class Session:
    """What a run was made of: `model, sae, activations_loader = session`."""

    model: Any
    sae: Any
    activations_loader: Any

    def __iter__(self) -> Any:
        return iter((self.model, self.sae, self.activations_loader))
