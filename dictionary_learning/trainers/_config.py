"""What a user can choose about training, and the facts of the run that the choices depend on.

A config is what was asked for. `config.build(run)` fills in the fields that were left out, once,
and passes the result to the trainer as `settings`, which never change afterwards.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dictionary_learning._border import short
from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.config import BaseConfig, auto, resolve, setting
from dictionary_learning.dictionaries import WIRINGS, Dictionary, load_dictionary
from dictionary_learning.dictionaries._info import site_names
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site
from dictionary_learning.trainers._optimizers import OPTIMIZERS
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._schedules import SCHEDULES, Schedule

if TYPE_CHECKING:
    from dictionary_learning.trainers._base import Trainer

C = TypeVar("C", bound="OptimizationConfig")


def _default_warmup(steps: int) -> int:
    return min(1000, steps // 10)


def decay_after(fraction: float) -> Callable[[Any], int]:
    """Returns a rule for `decay_start`: a fraction of the run, but not before the warm-up ends."""

    def rule(c: Any) -> int:
        if c.schedule != "linear":
            return c.steps
        asked = c.asked.warmup_steps
        warmup = _default_warmup(c.steps) if asked is None else asked
        return max(int(c.steps * fraction), min(warmup, c.steps))

    return rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizationConfig(BaseConfig):
    """Settings of every trainer: size, sites, optimizer, learning rate, weight average."""

    trainer_class: ClassVar[type[Any]]
    """The trainer of this config; set when the trainer's class is defined."""
    reads_contexts: ClassVar[bool] = False
    """Whether the method's dictionary reads whole contexts."""

    dict_size: int = auto(lambda c: _default_dict_size(c), at_least=1)
    """Number of latents; by default expansion_factor * activation_dim, or as in `finetune`."""
    expansion_factor: int = setting(16, at_least=1)
    """Latents per dimension of what is read, where dict_size is not given; a crosscoder reads the
    dimensions of all its sites."""
    seed: int | None = setting(0, at_least=-(2**63), at_most=2**64 - 1)
    """Seed of the initial weights; None for a random one. The command's first seed, and `seed` of
    `trainSAE`, decide the order of the rows too."""
    site: str | tuple[str, ...] | None = None
    """The site to train on, or several for a wiring that reads several; by default every site of
    the data gets its own dictionary, or all are read together."""
    target_site: str | tuple[str, ...] | None = None
    """What a transcoder predicts; by default the output of the module whose input it reads."""
    normalize: str | None = None
    """Normalization of the activations: a name of `NORMALIZATIONS`. None for the one that
    `trainSAE` chooses."""
    micro_acc_steps: int = setting(1, at_least=1)
    """Parts that a batch is processed in, to save memory; gradients are of the whole batch."""
    grad_acc_steps: int = setting(1, at_least=1)
    """Batches whose gradients are accumulated for one step. Schedules count steps."""
    cuda_graph: bool = False
    """Whether a GPU makes the loss and gradients of most steps from one recording, a CUDA graph,
    which the host launches at once. Small dictionaries need it most."""
    wandb_name: str | None = None
    """Name of the dictionary in logs and reports."""
    finetune: Any = None
    """A trained dictionary to start from, or where it is stored. It may get another nonlinearity,
    or more latents (`dict_size`). `trainSAE` also takes several: a folder, or a mapping from
    sites."""
    lr: float = auto(lambda c: c.asked.default_lr, at_least=0)
    """Learning rate; by default that of the method."""
    optimizer: Any = "adam"
    """A name of `OPTIMIZERS`, or a function from parameter groups to an optimizer."""
    beta1: float = setting(0.9, at_least=0, below=1)
    """Adam's decay of the mean gradient."""
    beta2: float = setting(0.999, at_least=0, below=1)
    """Adam's decay of the mean squared gradient."""
    eps: float = setting(1e-8, above=0)
    """Adam's epsilon."""
    max_grad_norm: float | None = setting(None, above=0)
    """Gradients are scaled down to this common norm; None for no limit."""
    max_loss_ratio: float | None = setting(None, above=1)
    """A step whose loss is above this multiple of its moving average is skipped; None for none."""
    schedule: str | Callable[[int], float] = "linear"
    """Learning-rate schedule: a name of `SCHEDULES`, or a function from the step to a factor."""
    warmup_steps: int = auto(lambda c: min(_default_warmup(c.steps), c.decay_start), at_least=0)
    """Warm-up of the learning rate; by default a tenth of the run, at most 1,000 steps."""
    decay_start: int = auto(lambda c: c.steps, at_least=0)
    """Step at which the schedule `linear` starts to decay to 0; by default there is no decay."""
    ema_decay: float | None = setting(None, above=0, below=1)
    """Decay of a moving average of the weights, which is exported; None for no average."""

    default_lr: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "normalize": NORMALIZATIONS}.items():
            chosen = getattr(self, name)
            if isinstance(chosen, str):
                known[chosen]  # raises for an unknown name
            elif chosen is not None and not callable(chosen):
                raise ConfigError(f"Got {name}={chosen!r}; give one of {', '.join(known)}, or a function.")
        if self.cuda_graph and (self.micro_acc_steps > 1 or self.grad_acc_steps > 1):
            raise ConfigError(
                f"Got cuda_graph=True with micro_acc_steps={self.micro_acc_steps} and "
                f"grad_acc_steps={self.grad_acc_steps}; what is recorded is a step in one part. Leave one of them out."
            )
        for site in (*site_names(self.site), *site_names(self.target_site)):
            Site.parse(site)

    @property
    def needs_predictions(self) -> bool:
        """Whether the loss depends on the model's predictions."""
        return False

    @property
    def needs_contexts(self) -> bool:
        """Whether the method trains on whole contexts only (`ContextStream`)."""
        return self.reads_contexts or self.needs_predictions

    def functions(self) -> "list[Callable[..., Any]]":
        """Returns the functions that the settings choose, by their names or as they are."""
        chosen = ((self.optimizer, OPTIMIZERS), (self.schedule, SCHEDULES))
        return [known[one] if isinstance(one, str) else one for one, known in chosen]

    def build(self, run: RunInfo | None = None, **facts: Any) -> "Trainer":
        """Returns the trainer of this config, on a new dictionary.

        Args:
            run: Facts of the run.
            facts: The same by name, such as `activation_dim=768, steps=1000`.

        Raises:
            ConfigError: A fact is missing, or the settings cannot be used with it.
        """
        trainer = getattr(self, "trainer_class", None)
        if trainer is None or inspect.isabstract(trainer):
            raise ConfigError(f"{type(self).__qualname__} is of no method; give one such as TrainerTopK.Config.")
        if run is not None and facts:
            raise ConfigError(f"build got {run!r} and {', '.join(facts)} by name; give the facts in one place.")
        return trainer(self, run or RunInfo.from_dict(facts))

    def resolved(self: C, run: RunInfo, trained: Dictionary | None) -> C:
        """Returns the settings that are used: every field that was left out is filled in."""
        steps = run.optimizer_steps(self.grad_acc_steps)
        if self.schedule != "linear":
            self.refuse_idle("decay_start", f"with schedule={self.schedule!r}, only with 'linear'", steps)
        if not isinstance(self.optimizer, str) or self.optimizer.startswith("signum"):
            for name, of_torch in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
                self.refuse_idle(name, f"with optimizer={self.optimizer!r}, which is given none", of_torch)
        settings = resolve(self, run=run, trained=trained, steps=steps)
        if settings.dict_size != settings.expansion_factor * run.activation_dim:
            beside = f"dict_size={settings.dict_size}" if self.is_set("dict_size") else "finetune, whose size is kept"
            settings.refuse_idle("expansion_factor", f"beside {beside}")
        wiring = WIRINGS[getattr(settings, "wiring", "autoencoder")]
        if not wiring.writes_others and run.output_dims not in (None, run.read_dims):
            raise ConfigError(
                f"Got output_dims={run.output_dims} for a dictionary that reconstructs its inputs, of width "
                f"{run.read_dims}. Leave output_dims out, or set wiring='transcoder'."
            )
        return settings

    def refuse_idle(self, name: str, reason: str, *harmless: Any) -> None:
        """Raises ConfigError if a setting without an effect is not at its default.

        `harmless` are values that would change nothing, as in saved settings.
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if value not in (None, default, *harmless):
            raise ConfigError(f"{name}={value!r} has no effect {reason}. Leave one of them out.")

    def with_trained(self: C) -> tuple[C, Dictionary | None]:
        """Returns the config with the dictionary to start from by name, and that dictionary.

        It must not be changed. The name, as it is saved, is where it was loaded from, or its class.
        """
        given = self.finetune
        if given is None:
            return self, None
        if not isinstance(given, Dictionary | str | os.PathLike):
            raise ConfigError(f"Got finetune={short(given)}; give a dictionary, or the path or name of one.")
        if isinstance(given, Dictionary):
            return self.replace(finetune=given.info.source or type(given).__name__), given
        return self.replace(finetune=str(given)), load_dictionary(given)

    def learning_rate_schedule(self, steps: int) -> Schedule:
        """Returns the factor of the learning rate at each step of resolved settings."""
        if not isinstance(self.schedule, str):
            try:
                float(self.schedule(0))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"schedule={self.schedule!r} maps no step to a number: {error}.") from error
            return self.schedule
        options = {"decay_start": self.decay_start} if self.schedule == "linear" else {}
        return SCHEDULES[self.schedule](steps, self.warmup_steps, **options)


def _default_dict_size(c: Any) -> int:
    return c.expansion_factor * c.run.activation_dim if c.trained is None else c.trained.dict_size
