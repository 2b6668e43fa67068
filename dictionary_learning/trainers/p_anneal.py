"""P-annealing: a penalty that turns from L1 towards L0, by a power that decays over the run."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import Trainable
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import Component, component
from dictionary_learning.trainers._penalties import PENALTIES, Penalty, PenaltyConfig, penalized_loss, sparsity_of
from dictionary_learning.trainers._sae_trainer import SAETrainer

_MIN_P = 0.05
"""The smallest power: at 0 there is no gradient, and (sum f^p)^(1/p) overflows at about 1/20."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PAnnealConfig(PenaltyConfig):
    """Settings of p-annealing."""

    sparsity_function: str = "Lp^p"
    """`Lp^p` for the sum of powers, `Lp` for its root."""
    anneal_start: int = auto(lambda c: min(15_000, c.steps // 3), at_least=0)
    """The step at which p starts to decay; by default after a third of the run, at most 15,000."""
    anneal_end: int = auto(lambda c: c.steps, at_least=0)
    """The step at which p reaches its end; by default the last."""
    p_start: float = setting(1.0, above=0)
    """The initial power."""
    p_end: float = setting(0.0, at_least=0)
    """The final power. It does not fall below 0.05."""
    n_sparsity_updates: int | Literal["continuous"] = setting(10, at_least=1)
    """Number of changes of p; "continuous" for one at each step."""
    sparsity_queue_length: int = setting(10, at_least=1)
    """Steps over which the means are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity_function not in ("Lp^p", "Lp"):
            raise ConfigError(f"P-annealing got sparsity_function={self.sparsity_function!r}; it is 'Lp^p' or 'Lp'.")
        if self.lp_norm != 1.0:
            raise ConfigError(f"P-annealing got lp_norm={self.lp_norm}; its power goes from p_start to p_end.")
        if self.p_end > self.p_start:
            raise ConfigError(f"Got p_start={self.p_start} and p_end={self.p_end}; p_end <= p_start is needed.")
        if self.is_set("anneal_start", "anneal_end") and self.anneal_start >= max(self.anneal_end, 1):
            raise ConfigError(
                f"Got anneal_start={self.anneal_start} and anneal_end={self.anneal_end}; the start must come before "
                "the end. Leave both out for fractions of the run."
            )

    def power_at(self, step: int, n_ahead: int = 0) -> float:
        """Returns p at a step, after some more of its changes."""
        length = self.anneal_end - self.anneal_start
        n_changes = max(length if self.n_sparsity_updates == "continuous" else self.n_sparsity_updates, 1)
        # the last change comes with the last step, or p_end would never be trained with
        done = (step - self.anneal_start) / max(length - 1, 1)
        changes = min(max(int(done * n_changes), 0) + n_ahead, n_changes)
        return max(self.p_start + (self.p_end - self.p_start) * changes / n_changes, _MIN_P)


class AnnealedPenalty(Component):
    """The penalty sum_i f_i^p, or its root, with a decaying p.

    With each change of p the penalty's weight is multiplied by the mean penalty of the last steps
    with the old p over that with the new one, so that the penalty keeps its size.
    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    def __init__(self, settings: PAnnealConfig, dictionary: Trainable):
        self.settings, self.dictionary = settings, dictionary
        self._step = 0
        self.weight = torch.ones((), device=dictionary.device)
        """Product of all corrections so far."""
        self._sums: collections.deque[Tensor] = collections.deque(maxlen=settings.sparsity_queue_length)

    def of_power(self, p: float) -> Penalty:
        """Returns the penalty with some power."""
        return functools.partial(PENALTIES[self.settings.sparsity_function], lp_norm=p)

    @property
    def penalty(self) -> Penalty:
        """The penalty of the current step."""
        return self.of_power(self.settings.power_at(self._step))

    @property
    def coefficient(self) -> float:
        """The weight of the penalty at the current step, without corrections."""
        return self.settings.coefficient_at(self._step)

    def corrected(self, loss: Loss) -> Loss:
        """Returns a loss whose penalty is multiplied by the corrections."""
        # the weight is a tensor, so that it changes without the host
        scaled = self.coefficient * loss.terms["sparsity_loss"]
        return loss._replace(total=loss.total + (self.weight - 1) * scaled)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        settings, self._step = self.settings, step + 1
        old, new, upcoming = settings.power_at(step), settings.power_at(step + 1), settings.power_at(step, n_ahead=1)
        sums: list[Tensor] = []
        for part in parts:
            # of the penalty itself: root and norms included, so that its size is what stays
            sparsity = sparsity_of(self.dictionary, settings, part.loss.reconstruction, latent_ranks=self.latent_ranks)
            sums.append(torch.stack([self.of_power(p)(sparsity).detach() for p in (old, upcoming)]) * part.share)
        self._sums.append(self.ranks.sum(torch.stack(sums).sum(0)))  # (2,)
        if new != old:  # penalties of a new power begin to be averaged anew
            means = torch.stack(list(self._sums)).mean(0)
            tiny = torch.finfo(means.dtype).tiny
            self.weight = self.weight * torch.where(means[1] > 0, means[0] / means[1].clamp_min(tiny), 1.0)
            self._sums.clear()

    def go_to(self, step: int) -> None:
        self._step = step

    def read_by_loss(self) -> list[Any]:
        return [self.settings.power_at(self._step), self.coefficient, self.weight]

    def figures(self) -> dict[str, Tensor]:
        # with corrections, and the p of the last step
        p = torch.tensor(self.settings.power_at(max(self._step - 1, 0)))
        return {"sparsity_coefficient": torch.tensor(self.coefficient, device=self.weight.device) * self.weight, "p": p}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "weight": self.weight, "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.weight.device
        self._step, self.weight = state["step"], state["weight"].to(device)
        self._sums.clear()
        self._sums.extend(sums.to(device) for sums in state["sums"])


# `Any`: the settings of a method are narrower than those of `SAETrainer`
def annealed_penalty(trainer: Any) -> AnnealedPenalty:
    """Returns the penalty of each step, as a component of a trainer with `PAnnealConfig`."""
    return AnnealedPenalty(trainer.settings, trainer.dictionary)


@TRAINERS.register("p_anneal")
class PAnnealTrainer(SAETrainer):
    """Trains a dictionary with ReLU and a penalty whose power decays.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i f_i^p,  p from p_start to p_end

    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    class Config(PAnnealConfig):
        """Settings of p-annealing."""

    settings: Config
    spreads_latents = True
    annealed = component(annealed_penalty)

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()

    def objective(self, batch: Batch) -> Loss:
        annealed = self.annealed
        return annealed.corrected(penalized_loss(self, self.settings, batch, annealed.penalty, annealed.coefficient))
