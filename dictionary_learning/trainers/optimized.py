"""What trainers share that follow the gradient: optimizer, learning rate, averaged weights."""

import copy
import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, load_dictionary
from dictionary_learning.dictionaries.conversion import expand_or_convert
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers.averaging import WeightAverage
from dictionary_learning.trainers.base import SAETrainer
from dictionary_learning.trainers.optimizers import build_optimizer
from dictionary_learning.trainers.schedules import SCHEDULES, Schedule


class OptimizedTrainer(SAETrainer):
    """Trains one dictionary by an optimizer whose learning rate follows a schedule."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SAETrainer.Config):
        """Settings of the optimizer."""

        finetune: Any = None
        """A trained dictionary to begin with, or the place of one: its weights, also with another nonlinearity, or more latents
        (`dict_size`; by default as many as it has). `trainSAE` also takes several: a folder, or a mapping from sites."""
        lr: float | None = None
        """Learning rate; None for the method's own."""
        optimizer: Any = "adam"
        """A name of `OPTIMIZERS`, or a function from groups of parameters to an optimizer."""
        beta1: float = 0.9
        """Adam's decay of the mean gradient."""
        beta2: float = 0.999
        """Adam's decay of the mean squared gradient."""
        eps: float = 1e-8
        """Adam's floor."""
        max_grad_norm: float | None = None
        """Gradients are scaled down to this common norm; None for no limit."""
        schedule: str = "linear"
        """Shape of the learning rate: a name of `SCHEDULES`."""
        warmup_steps: int | None = None
        """Steps over which the learning rate rises; by default a tenth of the run, at most 1,000."""
        decay_start: int | None = None
        """The step from which the learning rate falls to 0, for the schedule linear; None for no fall."""
        ema_decay: float | None = None
        """Decay of a moving average of the weights, which is what is saved; None for no average."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.ema_decay is not None and not 0 < self.ema_decay < 1:
                raise ConfigError(
                    f"Got ema_decay={self.ema_decay}; it must lie between 0 and 1, or be None for no average."
                )

    aliases: ClassVar = {
        "lr_scheduler_name": "schedule",
        "lr_warm_up_steps": "warmup_steps",
        "normalize_activations": "normalize",
        "adam_beta1": "beta1",
        "adam_beta2": "beta2",
    }
    default_lr: ClassVar[float] = 1e-3

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.lr = self.settings.lr if self.settings.lr is not None else self.own_lr()
        self.schedule = self.build_schedule()
        # what is saved says what was used, not that a default was
        self.config_values = self.settings.replace(lr=self.lr)
        self.average = None
        if self.settings.ema_decay is not None:
            self.average = WeightAverage(self.dictionary, self.settings.ema_decay, unit_rows=self.unit_row_names())

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def own_lr(self) -> float:
        """Returns the method's learning rate, where none was given."""
        return self.default_lr

    def trained(self) -> Dictionary:
        """Returns the dictionary to begin with, which must not be changed."""
        given = self.settings.finetune
        return given if isinstance(given, Dictionary) else load_dictionary(given)

    def continued(self, trained: Dictionary, nonlinearity: Nonlinearity | dict[str, Any]) -> Dictionary:
        """Returns a copy of a trained dictionary, with another nonlinearity and the number of latents that was asked for.

        Raises:
            ConfigError: it cannot be had so.
        """
        given, asked = self.settings.finetune, self._given_size
        expansion = 1.0 if asked is None else asked / trained.dict_size
        dictionary = expand_or_convert(
            trained, expansion=expansion, nonlinearity=nonlinearity, generator=self.generator
        )
        if asked not in (None, dictionary.dict_size):
            raise ConfigError(
                f"Got dict_size={asked} for a {type(trained).__name__} of {trained.dict_size} latents, which come in equal parts. Give a "
                f"size near it that is {trained.dict_size} times a number, as {dictionary.dict_size}."
            )
        self.dict_size = dictionary.dict_size
        # what is saved names it, and does not hold it
        name = type(given).__name__ if isinstance(given, Dictionary) else str(given)
        self.config_values = self.settings.replace(dict_size=self.dict_size, finetune=name)
        return dictionary

    def unit_row_names(self) -> set[str]:
        """Returns the names of the parameters whose rows have unit norm after each step."""
        return set()

    def lr_factors(self) -> dict[str, float]:
        """Returns what the learning rate is multiplied by for parameters, by the last part of their names."""
        return {}

    def build_optimizer(self) -> torch.optim.Optimizer:
        settings, factors, unit = self.settings, self.lr_factors(), self.unit_row_names()
        groups = [
            {"params": [p], "lr_factor": factors.get(name.rpartition(".")[2], 1.0), "unit_rows": name in unit}
            for name, p in self.dictionary.named_parameters()
        ]
        return build_optimizer(
            settings.optimizer,
            groups,
            lr=settings.lr or 1e-3,  # each step sets its own
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            max_grad_norm=settings.max_grad_norm,
        )

    def build_schedule(self) -> Schedule:
        """Returns the factor of the learning rate at each step, and saves with the settings what it was built with."""
        settings = self.settings
        warmup = min(1000, self.steps // 10) if settings.warmup_steps is None else settings.warmup_steps
        decay = self.steps if settings.decay_start is None else settings.decay_start
        if settings.warmup_steps is None:
            warmup = min(warmup, decay)
        self.config_values = settings.replace(warmup_steps=warmup, decay_start=decay)
        options = {"decay_start": decay} if settings.schedule == "linear" else {}
        return SCHEDULES[settings.schedule](self.steps, warmup, **options)

    def learning_rate(self, step: int) -> float:
        return self.lr * self.schedule(step)

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        figures = super().metrics()
        skipped = getattr(self.optimizer, "n_skipped", None)
        if figures and skipped is not None:
            figures["skipped_steps"] = skipped
        return figures

    def export(self) -> Dictionary:
        """Returns a copy of the dictionary as it is to be used: with averaged weights, where an average is kept."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            if self.average is None:
                return copy.deepcopy(self.dictionary)
            with self.average.averaged():
                return copy.deepcopy(self.dictionary)
        finally:
            if hasattr(self.optimizer, "train"):
                self.optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]

    def state_dict(self) -> dict[str, Any]:
        average = {"average": self.average.state_dict()} if self.average is not None else {}
        return {**super().state_dict(), **average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
