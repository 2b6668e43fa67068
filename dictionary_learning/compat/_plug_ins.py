"""Trainers that were written for dictionary-learning 0.1: subclasses of `SAETrainer` with `update`.

Such a class has an `__init__` that takes all settings and builds the dictionary `ae`, and makes its
own steps. `trainSAE` calls it through a `PlugInTrainer`.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dictionary_learning._random_state import seeded
from dictionary_learning._usual_state import usual_state
from dictionary_learning.compat._plug_in_state import load_attributes, saved_attributes
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops import Encoder
from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._base import Trainer
from dictionary_learning.trainers._batch import Batch, Loss, ModelLoss, finite_batch
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._run_info import FACTS, RunInfo

_OURS = ("site", "target_site", "normalize", "wandb_name")
"""Settings of `trainSAE`, which a plug-in is not given unless its own config has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlugInConfig(OptimizationConfig):
    """The arguments of a trainer written for dictionary-learning 0.1."""

    plug_in: ClassVar[type[Any]]
    """The class."""
    arguments: Any = None
    """Its arguments, by name."""
    seed: int | None = None
    """None for the random numbers of the caller, unless the arguments have one."""

    def build(self, run: RunInfo | None = None, **facts: Any) -> Trainer:
        return PlugInTrainer(self, run or RunInfo.from_dict(facts))


def adapt(cls: type[Any], base: type[Any]) -> None:
    """Makes a class written for dictionary-learning 0.1 one that can be instantiated.

    Args:
        cls: The class.
        base: The trainer that it inherits from: of this package, or one of its author.
    """
    cls.is_plug_in = True
    if not base.is_plug_in:  # what a plug-in has, its subclasses inherit
        _replace_inherited(cls)
    cls.Config = dataclasses.dataclass(frozen=True, kw_only=True)(
        type("Config", (PlugInConfig,), {"__module__": cls.__module__, "__doc__": f"Arguments of {cls.__name__}."})
    )
    cls.Config.plug_in = cls.Config.trainer_class = cls


def _replace_inherited(cls: type[Any]) -> None:
    """Replaces what a class has from this package, where 0.1 has none, or another."""
    inherited: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.startswith("dictionary_learning."):
            inherited |= vars(owner)
        else:  # the author's own stay
            inherited = {name: value for name, value in inherited.items() if name not in vars(owner)}
    for name, value in inherited.items():
        if getattr(value, "__isabstractmethod__", False):
            setattr(cls, name, _never_called)
        elif isinstance(value, (property, functools.cached_property)):
            setattr(cls, name, None)  # 0.1 sets these as plain attributes, as `self.ae`
    if "config" in inherited:
        cls.config = property(lambda self: {"wandb_name": "trainer"})
    if "get_logging_parameters" in inherited:
        cls.get_logging_parameters = _logging_parameters


def split_arguments(config: type[PlugInConfig], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config's fields and facts of the run from a dict config of a plug-in."""
    settings = {name: options[name] for name in _OURS if options.get(name) is not None}
    arguments = {name: value for name, value in options.items() if name not in _OURS or name == "wandb_name"}
    facts = {name: value for name, value in options.items() if name in FACTS and name != "device"}
    size = options.get("dict_size")
    return {**settings, **({"dict_size": size} if size else {}), "arguments": arguments}, facts


class PlugInTrainer(Trainer):
    """Makes the steps of a trainer written for dictionary-learning 0.1."""

    Config = PlugInConfig
    dictionary: Dictionary

    @usual_state()
    def __init__(self, config: PlugInConfig, run: RunInfo):  # the base would build another dictionary
        arguments: dict[str, Any] = config.arguments or {}
        given = next((one for one in (arguments.get("seed"), config.seed) if isinstance(one, int)), None)
        # without a seed of its own it is made with the random numbers of the caller, as ever
        with contextlib.nullcontext() if given is None else seeded(given):
            made = config.plug_in(**arguments)
        self._seed: int = torch.initial_seed() if given is None else given
        if not isinstance(getattr(made, "ae", None), Dictionary):
            got = type(getattr(made, "ae", None)).__name__
            raise ConfigError(f"{config.plug_in.__name__} has {got} as `ae`; a trainer keeps its Dictionary there.")
        self.plug_in, self.run, self.device = made, run, made.ae.device
        name = config.wandb_name or getattr(made, "wandb_name", None) or config.plug_in.__name__
        given = {"dict_size": made.ae.dict_size, "wandb_name": str(name), "lr": 0.0}
        self.settings = config.replace(**given, warmup_steps=0, decay_start=run.steps)
        self.steps, self.step = run.steps, 0
        self.ranks = self.latent_ranks = ALONE
        self.dictionary, self.components, self.average, self.loss_guard = made.ae, {}, None, None
        self.n_nonfinite_tokens = torch.zeros((), dtype=torch.long, device=self.device)
        self.optimizer: Any = _Skipped(getattr(made, "optimizer", None), self.device)
        self.figures_before, self._seen = {}, None

    def join(self, ranks: Ranks) -> None:
        if ranks.size > 1:
            raise ConfigError("A trainer written for dictionary-learning 0.1 works in one process only.")

    @usual_state(gradients=True)
    def update(
        self,
        step: int,
        x: Tensor,
        y: Tensor | None = None,
        model_loss_fn: ModelLoss | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        batch, n_replaced = finite_batch(x, y, self.device)
        self.n_nonfinite_tokens += n_replaced
        given = batch.x if y is None else torch.stack([batch.x, batch.y], dim=1)
        with seeded(self._seed, self.step):
            loss = self.plug_in.update(self.step, given)
        self._seen = (batch, torch.as_tensor(float("nan") if loss is None else loss).detach())
        self.step += 1
        return self._seen[1]

    def finish(self) -> None:
        pass

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        pass  # a plug-in does so in its first step

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        if self._seen is None:
            return dict(self.figures_before)
        (batch, loss), ae = self._seen, self.dictionary
        latents = ae.encode(batch.x.to(ae.dtype))
        error = (ae.decode(latents).float() - batch.y).pow(2).sum()
        figures = {"loss": loss, "l0": (latents != 0).float().sum(-1).mean()}
        figures["fvu"] = error / (batch.y - batch.y.mean(0)).pow(2).sum()
        figures["nonfinite_tokens"], figures["skipped_steps"] = self.n_nonfinite_tokens, self.optimizer.n_skipped
        own = self.plug_in.get_logging_parameters()
        return figures | {name: torch.as_tensor(value) for name, value in own.items() if _is_number(value)}

    def learning_rate(self, step: int) -> float:
        groups = getattr(getattr(self.plug_in, "optimizer", None), "param_groups", [{"lr": 0.0}])
        return float(groups[0]["lr"])

    def export(self) -> Dictionary:
        return copy.deepcopy(self.dictionary)

    @property
    def config(self) -> dict[str, Any]:
        own = self.plug_in.config
        names = {"trainer_class": type(self.plug_in).__name__, "dict_class": type(self.dictionary).__name__}
        return {**names, "grad_acc_steps": 1, "normalize": self.settings.normalize, **own}

    @property
    def is_between_steps(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "dictionary": self.dictionary.state_dict(),
            "step": self.step,
            "seed": self._seed,
            "n_nonfinite_tokens": self.n_nonfinite_tokens,
            **saved_attributes(self.plug_in),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dictionary.load_state_dict(state["dictionary"])
        self.step, self._seed = state["step"], state.get("seed", self._seed)  # older checkpoints have none
        self.n_nonfinite_tokens.copy_(state["n_nonfinite_tokens"])
        load_attributes(self.plug_in, state)

    def build_dictionary(self, trained: Dictionary | None) -> Dictionary:
        return self.dictionary

    def initialize_dictionary(self, x: Tensor, y: Tensor) -> None:
        pass

    def objective(self, batch: Batch) -> Loss:
        raise ConfigError(f"{type(self.plug_in).__name__} makes its own steps.")

    def with_auxiliary_losses(self, loss: Loss, batch: Batch) -> Loss:
        return loss

    def unit_row_names(self) -> set[str]:
        return set()

    def lr_factors(self) -> Mapping[str, float]:
        return {}

    def encoders(self) -> list[Encoder]:
        return []


class _Skipped:
    """An optimizer that skips no step, as the run reads it."""

    def __init__(self, optimizer: Any, device: torch.device):
        self.optimizer, self.n_skipped = optimizer, torch.zeros((), dtype=torch.long, device=device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the optimizer."""
        return {} if self.optimizer is None else self.optimizer.state_dict()


def _never_called(self: Any, *arguments: Any, **options: Any) -> Any:
    raise ConfigError(f"{type(self).__name__} was written for dictionary-learning 0.1, and makes its own steps.")


def _logging_parameters(self: Any) -> dict[str, Any]:
    names: Sequence[str] = self.logging_parameters or ()
    return {name: getattr(self, name) for name in names if hasattr(self, name)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
