"""What a trainer is: a dictionary, a loss that changes nothing, and an update that changes everything."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import BaseConfig, Registry
from dictionary_learning.dictionaries import Dictionary, Reconstruction
from dictionary_learning.errors import ConfigError
from dictionary_learning.hardware import default_device
from dictionary_learning.latents import l0
from dictionary_learning.ops.finite import replace_nonfinite
from dictionary_learning.ops.joint import Encoder


class Loss(NamedTuple):
    """What a loss is made of."""

    total: Float[Tensor, ""]
    """What is differentiated."""
    terms: dict[str, Float[Tensor, ""]]
    """What it is the sum of, by name, before weighting; for logs."""
    reconstruction: Reconstruction


class SAETrainer(ABC):
    """Trains one dictionary.

    A step is `accumulate` for each part of a batch, then `apply`; `update` does both. `loss` is pure: it reads a
    batch and the trainer's state, and returns numbers. All that changes (weights, counters, thresholds, the step)
    changes in `apply`. What is logged is read from the last step: logging computes and changes nothing else.

    Args:
        config: the settings; or give them by name.
        options: the fields of `Config`.

    Raises:
        ConfigError: a setting is missing or cannot be used.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings that every trainer has."""

        activation_dim: int | None = None
        """Width of the activations; `trainSAE` finds it in the data."""
        dict_size: int | None = None
        """Number of latents; by default expansion_factor times activation_dim."""
        expansion_factor: int = 16
        """Latents for each dimension of the activations, where dict_size is not given."""
        steps: int | None = None
        """Length of the run, which schedules refer to; `trainSAE` fills it in."""
        seed: int | None = 0
        """Seed of the initial weights."""
        site: str | None = None
        """The site to train on; by default every site of the data gets a dictionary of its own."""
        device: str | None = None
        """Where to train; the accelerator if there is one."""
        layer: int | None = None
        """The layer, as a note in the saved config."""
        lm_name: str | None = None
        """The language model, as a note in the saved config."""
        submodule_name: str | None = None
        """The submodule, as a note in the saved config."""
        wandb_name: str | None = None
        """Name of the dictionary in logs and reports."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Older names of settings."""

    def __init__(self, config: "SAETrainer.Config | None" = None, /, **options: Any):
        if config is None:
            config = self.Config.from_dict({self.aliases.get(name, name): value for name, value in options.items()})
        elif options:
            config = config.replace(**options)
        if not isinstance(config, self.Config):
            raise ConfigError(
                f"{type(self).__name__} got a {type(config).__qualname__}; give a {self.Config.__qualname__}."
            )
        missing = [name for name in ("activation_dim", "steps") if getattr(config, name) is None]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs {' and '.join(missing)}. Give them, or train with trainSAE, which knows them."
            )
        assert config.activation_dim is not None and config.steps is not None
        self.activation_dim: int = config.activation_dim
        self.dict_size: int = config.dict_size or config.expansion_factor * config.activation_dim
        self.steps: int = config.steps
        self.config_values = config.replace(dict_size=self.dict_size)
        self.step = 0
        """How many updates were made."""
        self.device = torch.device(config.device) if config.device else default_device()
        self.generator = torch.Generator()
        if config.seed is not None:
            self.generator.manual_seed(config.seed)
        else:
            self.generator.seed()
        self.dictionary = self.build().to(self.device)
        self.optimizer = self.build_optimizer()
        self.n_nonfinite_tokens = torch.zeros((), dtype=torch.long, device=self.device)
        """How many tokens had a NaN or an infinity."""
        self._prepared = False
        self._last: tuple[Tensor, Loss] | None = None

    @abstractmethod
    def build(self) -> Dictionary:
        """Returns the untrained dictionary."""

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """Returns the optimizer of the dictionary's parameters."""

    @abstractmethod
    def prepare(self, x: Float[Tensor, "batch activation_dim"]) -> None:
        """Sets what depends on data, as biases; called once, before the first step, with its batch or a larger sample."""

    @abstractmethod
    def loss(self, x: Float[Tensor, "batch activation_dim"]) -> Loss:
        """Returns the loss of a batch; changes nothing."""

    @abstractmethod
    def observe(self, loss: Loss, n_tokens: int) -> None:
        """Changes statistics after the optimizer's step, and weights that it left in want of it."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step."""

    def encoders(self) -> list[Encoder]:
        """Returns the encoders that `accumulate` will apply to the activations as they are, for one product with other trainers'."""
        return []

    @property
    def ae(self) -> Dictionary:
        """The dictionary, by its older name."""
        return self.dictionary

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, as it is saved."""
        names = {"trainer_class": type(self).__name__, "dict_class": type(self.dictionary).__name__}
        return {**self.config_values.to_dict(), **names, "device": str(self.device)}

    def accumulate(self, x: Float[Tensor, "batch activation_dim"], weight: float = 1.0) -> Loss:
        """Adds the gradients of a batch, or of the share `weight` of one.

        Tokens that are not finite are replaced by others and counted.
        """
        x, n_replaced = replace_nonfinite(x.to(self.device))
        self.n_nonfinite_tokens += n_replaced
        if not self._prepared:
            self.initialize(x)
        loss = self.loss(x)
        (loss.total * weight).backward()
        self._last = (x, loss)
        return loss

    def initialize(self, x: Float[Tensor, "n activation_dim"]) -> None:
        """Sets what depends on data; only the first call does anything."""
        if not self._prepared:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                x, _ = replace_nonfinite(x.to(self.device))
                self.prepare(x.to(torch.promote_types(self.dictionary.dtype, torch.float32)))
            self._prepared = True

    def apply(self) -> None:
        """Makes one step with the gradients gathered."""
        assert self._last is not None, "accumulate comes before apply"
        x, loss = self._last
        for group in self.optimizer.param_groups:
            rate = self.learning_rate(self.step) * group.get("lr_factor", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # where a captured step reads it
            else:
                group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.observe(loss, len(x))
        self.step += 1

    def update(self, step: int, x: Float[Tensor, "batch activation_dim"]) -> Float[Tensor, ""]:
        """Makes one whole step with a batch; returns the loss, which stays on its device.

        The trainer counts its steps itself; `step` is taken for the sake of callers that count them.
        """
        loss = self.accumulate(x)
        self.apply()
        return loss.total.detach()

    @torch.no_grad()
    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Returns figures of the last step's batch, on the device: terms of the loss, fvu, l0, and the learning rate."""
        if self._last is None:
            return {}
        x, loss = self._last
        x = x.float()
        error = (loss.reconstruction.outputs.float() - x).pow(2).sum()
        figures = {"loss": loss.total.detach(), **{name: term.detach() for name, term in loss.terms.items()}}
        figures["fvu"] = error / (x - x.mean(0)).pow(2).sum()
        figures["l0"] = l0(loss.reconstruction.latents)
        figures["lr"] = torch.tensor(self.learning_rate(max(self.step - 1, 0)))
        figures["nonfinite_tokens"] = self.n_nonfinite_tokens
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        return {
            "dictionary": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "n_nonfinite_tokens": self.n_nonfinite_tokens,
            "prepared": self._prepared,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of a trainer built alike."""
        self.dictionary.load_state_dict(state["dictionary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self._prepared = state["step"], state["prepared"]
        self.n_nonfinite_tokens.copy_(state["n_nonfinite_tokens"])


TRAINERS: Registry[type[SAETrainer]] = Registry("trainer")
