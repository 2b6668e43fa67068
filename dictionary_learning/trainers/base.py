"""What a trainer is: a dictionary, a loss that changes nothing, and an update that changes everything."""

import contextlib
import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.hardware import default_device
from dictionary_learning.latents import l0
from dictionary_learning.ops.encoder import Encoder
from dictionary_learning.ops.finite import replace_nonfinite
from dictionary_learning.trainers.batch import Batch, Loss, LossLog
from dictionary_learning.trainers.trainer_config import TrainerConfig


class SAETrainer(ABC):
    """Trains one dictionary.

    A step is `accumulate` for each part of a batch, then `apply`; `update` does both. `objective` is pure: it reads a
    batch and the trainer's state, and returns numbers. All that changes (weights, counters, thresholds, the step)
    changes in `apply`. What is logged is read from the last step: logging computes and changes nothing else.

    Args:
        arguments: the config; or settings in the order of `positional`.
        options: settings by name, or changes to the config: the fields of `Config`.

    Raises:
        ConfigError: a setting is missing or cannot be used.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TrainerConfig):
        """Settings that every trainer has."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Older names of settings."""

    positional: ClassVar[tuple[str, ...]] = ("steps", "activation_dim", "dict_size", "layer", "lm_name")
    """Settings that may be given by position, in dictionary-learning's order."""

    def __init__(self, *arguments: Any, **options: Any):
        config, options = self._read_arguments(arguments, options)
        if config is None:
            config = self.Config.from_dict({self.aliases.get(name, name): value for name, value in options.items()})
        elif options:
            config = config.replace(**options)
        if not isinstance(config, self.Config):
            raise ConfigError(
                f"{type(self).__name__} got a {type(config).__qualname__}; give a {self.Config.__qualname__}."
            )
        if config.micro_acc_steps < 1 or config.grad_acc_steps < 1:
            raise ConfigError(
                f"Got micro_acc_steps={config.micro_acc_steps} and grad_acc_steps={config.grad_acc_steps}; both must be at least 1."
            )
        missing = [name for name in ("activation_dim", "steps") if getattr(config, name) is None]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs {' and '.join(missing)}. Give them, or train with trainSAE, which knows them."
            )
        assert config.activation_dim is not None and config.steps is not None
        self.activation_dim: int = config.activation_dim
        self.dict_size: int = config.dict_size or config.expansion_factor * config.activation_dim
        self.steps: int = max(config.steps // config.grad_acc_steps, 1)
        self._given_size = config.dict_size
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
        self._gathered: list[tuple[Batch, Loss]] = []
        self._last: list[tuple[Batch, Loss]] = []
        self._n_batches = 0

    def _read_arguments(
        self, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple["SAETrainer.Config | None", dict[str, Any]]:
        """Returns the config, where one was given, and the settings given by name or position."""
        if len(arguments) == 1 and (arguments[0] is None or isinstance(arguments[0], SAETrainer.Config)):
            return arguments[0], options
        if len(arguments) > len(self.positional):
            raise ConfigError(
                f"{type(self).__name__} got {len(arguments)} arguments by position; it takes a config, or {', '.join(self.positional)} "
                "in this order. Give the others by name."
            )
        return None, {**dict(zip(self.positional, arguments, strict=False)), **options}

    @abstractmethod
    def build(self) -> Dictionary:
        """Returns the untrained dictionary."""

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """Returns the optimizer of the dictionary's parameters."""

    @abstractmethod
    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        """Sets what depends on data, as biases; called once, before the first step, with its batch or a larger sample."""

    @abstractmethod
    def objective(self, batch: Batch) -> Loss:
        """Returns the loss of a batch; changes nothing."""

    @abstractmethod
    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
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
    def logging_parameters(self) -> list[str]:
        """The names of the figures that are logged, once there was a step."""
        return list(self.metrics())

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, as it is saved."""
        names = {"trainer_class": type(self).__name__, "dict_class": type(self.dictionary).__name__}
        return {**self.config_values.to_dict(), **names, "device": str(self.device)}

    def loss(
        self,
        x: Tensor,
        y: Tensor | int | None = None,
        *,
        step: int | None = None,
        logging: bool = False,
        lengths: Tensor | None = None,
    ) -> Any:
        """Returns the loss of a batch; changes nothing.

        Args:
            x: what the dictionary reads (batch, activation_dim).
            y: what it is to reconstruct; x, if not given. A number is taken for the step, as in dictionary-learning.
            step: taken for the sake of older scripts; the trainer counts its steps itself.
            logging: returns `LossLog(x, x_hat, f, losses)` instead, with dense latents and plain numbers.
            lengths: how many tokens each context has (see `Batch`).
        """
        y = x if y is None or isinstance(y, int) else y
        loss = self.objective(Batch(x, y, lengths=lengths))
        return LossLog.of(x, loss) if logging else loss

    def get_logging_parameters(self) -> dict[str, float]:
        """Returns the figures of the last step, as plain numbers."""
        return {name: float(value) for name, value in self.metrics().items()}

    def accumulate(
        self,
        x: Tensor,
        y: Tensor | None = None,
        weight: float = 1.0,
        model_loss_fn: Any = None,
        lengths: Tensor | None = None,
    ) -> Loss:
        """Adds the gradients of a batch, or of the share `weight` of one.

        Tokens that are not finite are replaced by others and counted.

        Args:
            x: what the dictionary reads (batch, activation_dim).
            y: what it is to reconstruct (batch, output_dim); x, if not given.
            weight: the share.
            downstream: what the model loses with reconstructions in place of y (see `Batch`).
            lengths: how many tokens each context has, where the batch is contexts one after another.
        """
        batch = self._finite(x, y)._replace(model_loss_fn=model_loss_fn, lengths=lengths)
        if not self._prepared:
            self.initialize(batch.x, None if y is None else batch.y)
        loss = self.objective(batch)
        with torch.autocast(self.device.type, enabled=False):  # or products of the backward pass would be made in less
            (loss.total * weight).backward()
        self._gathered.append((batch, loss))
        return loss

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sets what depends on data; only the first call does anything."""
        if not self._prepared:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                batch = self._finite(x, y)
                dtype = torch.promote_types(self.dictionary.dtype, torch.float32)
                self.prepare(batch.x.to(dtype), batch.y.to(dtype))
            self._prepared = True

    def apply(self) -> None:
        """Makes one step with the gradients gathered."""
        assert self._gathered, "accumulate comes before apply"
        for group in self.optimizer.param_groups:
            rate = self.learning_rate(self.step) * group.get("lr_factor", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # where a captured step reads it
            else:
                group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.observe(self._gathered)
        self._last, self._gathered = self._gathered, []
        self.step += 1

    def update(
        self,
        step: int,
        x: Float[Tensor, "batch activation_dim"],
        y: Float[Tensor, "batch output_dim"] | None = None,
        model_loss_fn: Any = None,
        lengths: Int[Tensor, "contexts"] | None = None,
    ) -> Float[Tensor, ""]:
        """Takes in a batch, in parts if so set, and makes a step when enough were taken in; returns the loss, on its device.

        The trainer counts its steps itself; `step` is taken for the sake of callers that count them. The other arguments are
        those of `accumulate`.
        """
        config = self.config_values
        lengths = lengths if config.micro_acc_steps == 1 else None  # parts are no whole contexts
        total = None
        parts = zip(x.chunk(config.micro_acc_steps), (x if y is None else y).chunk(config.micro_acc_steps), strict=True)
        with self.whole_batch(x):
            for x_part, y_part in parts:
                share = len(x_part) / max(len(x), 1)
                weight = share / config.grad_acc_steps
                loss = self.accumulate(x_part, None if y is None else y_part, weight, model_loss_fn, lengths)
                part = loss.total.detach() * share
                total = part if total is None else total + part
        self._n_batches += 1
        if self._n_batches % config.grad_acc_steps == 0:
            self.apply()
        assert total is not None
        return total

    @contextlib.contextmanager
    def whole_batch(self, x: Float[Tensor, "batch activation_dim"]) -> Iterator[None]:
        """Holds, while the parts of a batch are taken in, what depends on all of it."""
        yield

    @torch.no_grad()
    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Returns figures of the last step's batch, on the device: terms of the loss, fvu, l0, and the learning rate."""
        if not self._last:
            return {}
        shares = self.shares(self._last)
        figures: dict[str, Tensor] = {}
        for share, (_, loss) in zip(shares, self._last, strict=True):
            parts = {"loss": loss.total, **loss.terms, "l0": l0(loss.reconstruction.latents)}
            for name, value in parts.items():
                figures[name] = figures.get(name, 0.0) + share * value.detach()
        y = torch.cat([batch.y for batch, _ in self._last]).float()
        outputs = torch.cat([loss.reconstruction.outputs for _, loss in self._last]).float()
        figures["fvu"] = (outputs - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
        figures["lr"] = torch.tensor(self.learning_rate(max(self.step - 1, 0)))
        figures["nonfinite_tokens"] = self.n_nonfinite_tokens
        return figures

    @staticmethod
    def shares(gathered: list[tuple[Batch, Loss]]) -> list[float]:
        """Returns the share of a step's tokens that each part has."""
        total = sum(len(batch.x) for batch, _ in gathered)
        return [len(batch.x) / max(total, 1) for batch, _ in gathered]

    def export(self) -> Dictionary:
        """Returns a copy of the dictionary as it is to be used."""
        return copy.deepcopy(self.dictionary)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on; gradients gathered since the last step are not kept."""
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
        self._n_batches, self._gathered = self.step * self.config_values.grad_acc_steps, []
        self.n_nonfinite_tokens.copy_(state["n_nonfinite_tokens"])

    def _finite(self, x: Tensor, y: Tensor | None) -> Batch:
        """Returns the batch on the device, its tokens that are not finite replaced and counted."""
        x = x.to(self.device)
        if y is None:
            x, n_replaced = replace_nonfinite(x)
            self.n_nonfinite_tokens += n_replaced
            return Batch(x, x)
        # a token is replaced on both sides, or its prediction would be asked of another's input
        both, n_replaced = replace_nonfinite(torch.cat([x, y.to(x)], dim=1))
        self.n_nonfinite_tokens += n_replaced
        x, y = both.split([x.shape[1], y.shape[1]], dim=1)
        return Batch(x.contiguous(), y.contiguous())


TRAINERS: Registry[type[SAETrainer]] = Registry("trainer")


def trainer_of(config: SAETrainer.Config) -> type[SAETrainer]:
    """Returns the trainer that a config is of.

    Raises:
        ConfigError: no registered trainer has it.
    """
    for _, trainer_class in TRAINERS.items():
        if type(config) is trainer_class.Config:
            return trainer_class
    raise ConfigError(
        f"No registered trainer has the config {type(config).__qualname__}. Register it with @TRAINERS.register(name)."
    )
