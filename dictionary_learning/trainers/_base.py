"""The base of every trainer: a dictionary, a pure loss, and an update that changes everything."""

import contextlib
import copy
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._random_state import seeded
from dictionary_learning._usual_state import usual_state
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Dictionary, Trainable
from dictionary_learning.dictionaries._latent_shares import hold_latents_, per_latent_tensors, with_all_latents
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops import Encoder
from dictionary_learning.ops._precision import upcast
from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._averaging import WeightAverage
from dictionary_learning.trainers._batch import Batch, Loss, ModelLoss, StepPart, finite_batch
from dictionary_learning.trainers._components import Component, made_components
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._definition import check_methods, makes_own_steps, own_config, read_arguments
from dictionary_learning.trainers._figures import step_figures
from dictionary_learning.trainers._gathering import Gathering
from dictionary_learning.trainers._initialization import Initialization
from dictionary_learning.trainers._optimizer_rows import CommonNorm
from dictionary_learning.trainers._optimizers import build_optimizer, parameter_groups, set_learning_rate
from dictionary_learning.trainers._replay import RECORDERS, ReplayedSteps
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._spikes import LossGuard

_KNOWN = ("dictionary_learning", "torch")
"""Packages whose classes and functions do not draw from the generators of the process in a step."""

logger = logging.getLogger(__name__)


class Trainer(ABC):
    """Trains one dictionary with one optimizer.

    `update` makes a step: `loss` for each part of the batch, backward, the optimizer, `after_step`.
    `loss` is pure. Everything that changes (weights, counters, thresholds, the step) changes in
    `update`. Logging reads the last step, and computes and changes nothing else.

    It is built from a config and the facts of a run. Older scripts give settings and facts by
    position and by name instead. Raises ConfigError where one is missing or cannot be used.
    """

    Config: ClassVar[type[OptimizationConfig]] = OptimizationConfig
    spreads_latents: ClassVar[bool] = False
    """Whether its latents may be spread over ranks: what it sums over latents itself, it passes
    through `latent_ranks.add`."""
    is_plug_in: ClassVar[bool] = False
    """Whether the class was written for dictionary-learning 0.1, and makes its own steps."""
    replayed: ReplayedSteps | None = None
    """Makes loss and gradients of most steps at once, where that was asked for."""
    settings: OptimizationConfig
    dictionary: Dictionary

    def __init_subclass__(cls, **options: Any) -> None:
        """Gives every trainer its own Config, which builds this trainer and no other."""
        super().__init_subclass__(**options)
        if makes_own_steps(cls):
            from dictionary_learning.compat._plug_ins import adapt

            adapt(cls, next(base for base in cls.__mro__[1:] if issubclass(base, Trainer)))
            return
        cls.Config = own_config(cls)
        if "objective" in vars(cls) and "spreads_latents" not in vars(cls):
            cls.spreads_latents = False  # what its base says is of another loss
        check_methods(cls)

    @usual_state()
    def __init__(self, config: Any = None, run: Any = None, *older: Any, **options: Any):
        if self.is_plug_in:  # `super().__init__(seed)` of one
            self.seed = config
            self.logging_parameters = []  # pyright: ignore[reportAttributeAccessIssue]  (a plug-in's own)
            return
        if not isinstance(config, OptimizationConfig) or not isinstance(run, RunInfo) or older or options:
            config, run = read_arguments(type(self), (config, run, *older), options)
        # of a base or of a subclass it would have other defaults, or settings that nothing reads
        if getattr(config, "trainer_class", None) is not type(self):
            raise ConfigError(
                f"{type(self).__name__} got a {type(config).__qualname__}; give a {self.Config.__qualname__}."
            )
        config, trained = config.with_trained()
        self.run = run
        self.settings = config.resolved(run, trained)
        self.steps = run.optimizer_steps(config.grad_acc_steps)
        """Optimizer steps of the run."""
        self.step = 0
        """Optimizer steps made so far."""
        self._scheduled: int | None = 0  # the step that components are at; None if it is not known
        self.device = run.torch_device
        self.ranks: Ranks = ALONE
        """The processes that share the tokens of a step; see `join`."""
        self.latent_ranks: Ranks = ALONE
        """The processes that have the other latents of the dictionary; see `hold_latents`."""
        self.generator = torch.Generator()
        if config.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(config.seed)
        with seeded(self.generator.initial_seed()):  # a class of the user's may draw
            self.dictionary = self.build_dictionary(trained)
        self.schedule = self.settings.learning_rate_schedule(self.steps)
        self.loss_scale = torch.ones((), device=self.device)
        """Factor of errors: 1, or 1 over the variance of the targets, estimated once."""
        self.n_nonfinite_tokens = torch.zeros((), dtype=torch.long, device=self.device)
        """Tokens that had a NaN or an infinity."""
        self._initialized = False
        self._gathering = Gathering(config.grad_acc_steps)
        self.figures_before: Mapping[str, Tensor] = {}
        """Figures of the last step before the run was resumed, logged until the next one."""
        self._last: list[StepPart] = []
        self._prepare()

    def _prepare(self) -> None:
        """Makes what depends on the tensors of the dictionary: optimizer, average, components."""
        settings = self.settings
        self._initialization = Initialization(self.dictionary, self.initialize_dictionary)
        groups = parameter_groups(self.dictionary, self.lr_factors(), self.unit_row_names())
        self.optimizer = build_optimizer(
            settings.optimizer,
            groups,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            max_grad_norm=settings.max_grad_norm,
        )
        self.average: WeightAverage | None = None
        if settings.ema_decay is not None:
            self.average = WeightAverage(self.dictionary, settings.ema_decay, unit_rows=self.unit_row_names())
        ratio = settings.max_loss_ratio
        self.loss_guard = None if ratio is None else LossGuard(ratio, self.device)
        guards = {} if self.loss_guard is None else {"loss_guard": self.loss_guard}
        self.components: dict[str, Component] = {**made_components(self), **guards}
        """Parts with state of their own, in the order of their updates."""
        for part in self.components.values():
            part.ranks, part.latent_ranks = self.ranks, self.latent_ranks
        parts = (self, *self.dictionary.modules(), *self.components.values(), *settings.functions())
        self.may_draw = any(_is_of_others(part) for part in parts)
        """Whether a step may draw from the generators of the process: something in it is not of
        this package."""
        recorder = RECORDERS.get(self.device.type) if settings.cuda_graph else None
        if settings.cuda_graph and recorder is None:
            logger.warning("cuda_graph=True has no effect on the device '%s'.", self.device)
        self.replayed = recorder and ReplayedSteps(_recordable, recorder(self.device))

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute by its name in dictionary-learning 0.1, such as `scheduler`."""
        if name.startswith("_"):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'.")
        from dictionary_learning.compat._trainer_names import older_attribute

        return older_attribute(self, name)

    def join(self, ranks: Ranks) -> None:
        """Makes this trainer one of several with the same weights, which see different tokens.

        All call `update` together, each with its own tokens, and make the step that one process
        would make with all of them. `update`, `loss` and `metrics` wait for the other ranks.
        """
        self.ranks = ranks
        for part in self.components.values():
            part.ranks = ranks

    def hold_latents(self, ranks: Ranks, device: torch.device) -> None:
        """Makes this trainer one of several with the same tokens, which have different latents.

        It is called before the first step. The dictionary keeps a slice of its latents, on the
        device, and everything else is made anew for it.

        Raises:
            ConfigError: The method's latents cannot be spread.
        """
        own = self.dictionary
        if not isinstance(own, Trainable) or own.encodes_itself or own.decodes_itself or not self.spreads_latents:
            raise ConfigError(f"The latents of {type(self).__name__} cannot be spread. Use placement='data'.")
        hold_latents_(own, ranks)
        self.device, self.latent_ranks = device, ranks
        self.dictionary.to(device)
        self.loss_scale, self.n_nonfinite_tokens = self.loss_scale.to(device), self.n_nonfinite_tokens.to(device)
        self._prepare()
        shares = [p for part in own.coders() for _, p in per_latent_tensors(part.coder)]
        self.optimizer.norm = CommonNorm(ranks, shares)

    @abstractmethod
    def build_dictionary(self, trained: Dictionary | None) -> Dictionary:
        """Returns a new dictionary on the device, or a copy of a trained one to start from."""

    @abstractmethod
    def initialize_dictionary(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        """Sets what depends on data, such as biases, before the first step."""

    @abstractmethod
    def objective(self, batch: Batch) -> Loss:
        """Returns the method's loss of a batch. Changes nothing."""

    @abstractmethod
    def with_auxiliary_losses(self, loss: Loss, batch: Batch) -> Loss:
        """Returns a loss with the terms that do not depend on the method. Changes nothing."""

    @abstractmethod
    def unit_row_names(self) -> set[str]:
        """Returns the names of the parameters whose rows are kept at unit norm."""

    @abstractmethod
    def lr_factors(self) -> Mapping[str, float]:
        """Returns factors of the learning rate, by the last part of a parameter's name."""

    @abstractmethod
    def encoders(self) -> list[Encoder]:
        """Returns the encoders that `loss` applies, for one product with those of others."""

    def after_step(self, parts: Sequence[StepPart]) -> None:  # noqa: B027
        """Changes weights after the optimizer step, such as thresholds below 0."""

    def keeping(self) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which auxiliary losses use what the objective has computed."""
        return contextlib.nullcontext()

    def sharing(self, parts: Sequence[Batch]) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which the parts of one batch share what depends on all of it."""
        return contextlib.nullcontext()

    @usual_state(gradients=True)
    def update(
        self,
        step: int,
        x: Float[Tensor, "batch activation_dim"],
        y: Float[Tensor, "batch output_dim"] | None = None,
        model_loss_fn: ModelLoss | None = None,
        lengths: Int[Tensor, "contexts"] | None = None,
    ) -> Float[Tensor, ""]:
        """Processes a batch, and makes an optimizer step when enough were accumulated.

        Tokens that are not finite are replaced by others and counted.

        Args:
            step: The step of schedules, such as the penalty's; the learning rate follows from the
                steps that were made. A dictionary is initialized from the data at step 0, and what
                was set by hand stays. Ignored with `grad_acc_steps`.
            x: Input of the dictionary.
            y: Target of the reconstruction; by default x.
            model_loss_fn: As in `Batch`, and so is `lengths`.
            lengths: Tokens of each context.

        Returns:
            The loss, on the device.
        """
        with self._drawing(runs_model=model_loss_fn is not None):
            settings, gathering, n_tokens = self.settings, self._gathering, max(self.ranks.total(len(x)), 1)
            at = self.step if settings.grad_acc_steps > 1 else step
            self._go_to(at)
            gathering.give_gradients(self.dictionary)
            batch, n_replaced = finite_batch(x, y, self.device)
            self.n_nonfinite_tokens += self.ranks.sum(n_replaced)
            parts = batch._replace(model_loss_fn=model_loss_fn, lengths=lengths).split(settings.micro_acc_steps)
            if not self._initialized:
                self._initialize(self._of_all_ranks(batch), is_first=at == 0)
            total: Tensor | None = None
            with self.sharing(parts):  # BatchTopK selects over the whole batch
                for part in parts:
                    share = len(part.x) / n_tokens
                    loss = None if self.replayed is None else self.replayed(self, part)
                    if loss is None:
                        loss = self.loss(part.x, part.y, model_loss_fn=part.model_loss_fn, lengths=part.lengths)
                        loss = self._with_gradients(loss, part, share / settings.grad_acc_steps)
                    gathering.add(StepPart(part, loss, share))
                    own = loss.total * share
                    total = own if total is None else total + own
            if gathering.count(n_tokens):
                self._optimizer_step(at)
            else:
                gathering.keep_gradients(self.dictionary)
            assert total is not None  # also a batch without tokens is one part
            return self.ranks.sum(total)

    @usual_state()
    def finish(self) -> None:
        """Makes a last step if fewer than `grad_acc_steps` batches were accumulated."""
        if n_left := self._gathering.n_open:
            self._gathering.give_gradients(self.dictionary)
            for parameter in self.dictionary.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self._gathering.per_step / n_left)
            with self._drawing():
                self._optimizer_step(self.step)
            self._gathering.start_at(self.step)

    @usual_state()
    def loss(
        self,
        x: Tensor,
        y: Tensor | int | None = None,
        *,
        model_loss_fn: ModelLoss | None = None,
        lengths: Tensor | None = None,
        **older: Any,
    ) -> Any:
        """Returns the `Loss` of a batch, given as in `update`. Changes nothing.

        What depends on data, as the factor by which methods divide errors, is 1 until `initialize`
        or the first `update` has set it.

        Older scripts give the step of schedules in the place of y, and further arguments, for which
        `compat` returns what they expect.
        """
        if older or not (y is None or isinstance(y, Tensor)):
            from dictionary_learning.compat._trainer_arguments import older_loss

            return older_loss(self, x, y, lengths=lengths, **older)
        # errors are squared and summed: in half precision they would overflow or vanish
        full_x = upcast(x)
        batch = Batch(full_x, full_x if y is None or y is x else upcast(y), model_loss_fn, lengths)
        with self.keeping():
            loss = self.objective(batch)
            if not isinstance(loss, Loss):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(f"{type(self).__name__}.objective returned {type(loss).__name__}; it returns a Loss.")
            return self.with_auxiliary_losses(loss, batch)

    @usual_state()
    def initialize(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"] | None = None) -> None:
        """Sets what depends on data, from a sample; only the first call has an effect."""
        if not self._initialized:
            # of a sample, whose tokens are trained on later: they are not counted here
            self._initialize(finite_batch(x, y, self.device)[0])

    @usual_state(gradients=False)
    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Returns figures of the last step, on the device: loss terms, fvu, l0, learning rate."""
        if not self._last:
            return dict(self.figures_before)
        figures = step_figures(self._last, self.ranks, self.latent_ranks)
        figures["lr"] = torch.tensor(self.learning_rate(max(self.step - 1, 0)))
        figures["nonfinite_tokens"] = self.n_nonfinite_tokens
        figures["skipped_steps"] = self.optimizer.n_skipped
        for part in self.components.values():
            figures.update(part.figures())
        return figures

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step."""
        return self.settings.lr * self.schedule(step)

    @usual_state()
    def export(self) -> Dictionary:
        """Returns a copy of the dictionary for use, with averaged weights if there are any."""
        optimizer: Any = self.optimizer
        averages_itself = hasattr(optimizer, "eval")  # schedule-free
        if averages_itself:
            optimizer.eval()
        with self.average.averaged() if self.average is not None else contextlib.nullcontext():
            dictionary = self._whole_dictionary()
        if averages_itself:
            optimizer.train()
        return dictionary

    @property
    def config(self) -> dict[str, Any]:
        """Every setting and fact of the run as plain data, as it is saved."""
        names = {"trainer_class": type(self).__name__, "dict_class": type(self.dictionary).__name__}
        facts = {**self.run.to_dict(), "device": str(self.device)}
        if facts["output_dims"] is None and self.dictionary.output_dim != self.dictionary.activation_dim:
            facts["output_dims"] = list(self.dictionary.site_widths[1])
        from dictionary_learning.compat._trainer_names import SavedSettings

        return SavedSettings({**facts, **self.settings.to_dict(), **names})

    @property
    def ae(self) -> Dictionary:
        """The dictionary, by its name in dictionary-learning."""
        return self.dictionary

    @property
    def activation_dim(self) -> int:
        """Width of the inputs."""
        return self.run.activation_dim

    @property
    def dict_size(self) -> int:
        """Number of latents."""
        return self.settings.dict_size

    @property
    def logging_parameters(self) -> list[str]:
        """The names of the figures that are logged, once there was a step."""
        return list(self.metrics())

    def get_logging_parameters(self) -> dict[str, float]:
        """Returns the figures of the last step as plain numbers."""
        return {name: float(value) for name, value in self.metrics().items()}

    @property
    def is_between_steps(self) -> bool:
        """Whether no gradients of a part of a step are held, so that `state_dict` is everything."""
        return self._gathering.is_empty

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next steps depend on, except accumulated gradients."""
        return {
            "dictionary": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "n_nonfinite_tokens": self.n_nonfinite_tokens,
            "initialized": self._initialized,
            "loss_scale": self.loss_scale,
            "average": None if self.average is None else self.average.state_dict(),
            "components": {name: part.state_dict() for name, part in self.components.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from the state of a trainer with the same settings."""
        self.dictionary.load_state_dict(state["dictionary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self._initialized = state["step"], state["initialized"]
        self._scheduled = None  # components have steps of their own
        self._gathering.start_at(self.step)
        self.n_nonfinite_tokens.copy_(state["n_nonfinite_tokens"])
        self.loss_scale = state["loss_scale"].to(self.device)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, part in self.components.items():
            part.load_state_dict(state["components"][name])

    def _whole_dictionary(self) -> Dictionary:
        if self.latent_ranks.size > 1 and isinstance(self.dictionary, Trainable):
            return with_all_latents(self.dictionary)
        return copy.deepcopy(self.dictionary)

    @contextlib.contextmanager
    def at_step(self, step: int | None) -> Generator[None, None, None]:
        """Makes schedules, such as the penalty's, those of a step inside the `with` block."""
        before = self.step if self._scheduled is None else self._scheduled
        self._go_to(before if step is None else step)
        try:
            yield
        finally:
            self._go_to(before)

    def _drawing(self, *, runs_model: bool = False) -> contextlib.AbstractContextManager[None]:
        """Returns a context whose random numbers depend on the seed and the batch alone."""
        if not self.may_draw and not runs_model:
            return contextlib.nullcontext()
        return seeded(self.generator.initial_seed(), self._gathering.n_batches)

    def _go_to(self, step: int) -> None:
        if step != self._scheduled:
            for part in self.components.values():
                part.go_to(step)
            self._scheduled = step

    def _initialize(self, batch: Batch, *, is_first: bool = True) -> None:
        with seeded(self.generator.initial_seed()) if self.may_draw else contextlib.nullcontext():
            self._initialization.run(batch, is_first=is_first)
        self._initialized = True

    def _with_gradients(self, loss: Loss, part: Batch, share: float = 1.0) -> Loss:
        """Adds the gradients of a share of a loss, and returns the loss without its graph."""
        # under autocast the products of the backward pass would lose precision
        with torch.autocast(self.device.type, enabled=False):
            guarded = loss.total if self.loss_guard is None else loss.total * self._guard(loss.total, part)
            (guarded if share == 1.0 else guarded * share).backward()
        # a graph kept until the next step keeps memory, and cannot be captured on CUDA
        return loss.detached()

    def _guard(self, loss: Tensor, part: Batch) -> Tensor:
        assert self.loss_guard is not None
        return self.loss_guard.factor(self.ranks.mean(loss.detach(), len(part.x)))

    def _of_all_ranks(self, batch: Batch) -> Batch:
        x = self.ranks.gather(batch.x)
        return batch._replace(x=x, y=x if batch.y is batch.x else self.ranks.gather(batch.y))

    def _optimizer_step(self, at: int) -> None:
        set_learning_rate(self.optimizer, self.learning_rate(self.step))
        # each rank's loss was weighted by its share of the tokens
        self.ranks.sum_([p.grad for p in self.dictionary.parameters() if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._gathering.take()
        with torch.no_grad():
            for part in self.components.values():
                part.after_step(parts, at)
            self.after_step(parts)
            if self.average is not None:
                self.average.update()
        self._last = parts
        self.step, self._scheduled = self.step + 1, at + 1


def _recordable(trainer: Trainer, batch: Batch) -> Loss:
    return trainer._with_gradients(trainer.loss(batch.x, batch.y), batch)


def _is_of_others(part: Any) -> bool:
    made = part.func if isinstance(part, functools.partial) else part
    return made.__module__.partition(".")[0] not in _KNOWN


TRAINERS: Registry[type[Trainer]] = Registry("trainer")
