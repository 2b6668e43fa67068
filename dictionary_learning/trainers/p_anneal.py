"""P-annealing: a penalty that turns from L1 towards L0."""

import collections
import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.losses import mean_sum
from dictionary_learning.trainers.penalized import PenalizedTrainer
from dictionary_learning.trainers.penalties import Penalty, PowerNorm, PowerSum, powers

_LEAST_P = 0.05
"""The least power: at 0 there is no gradient, and (sum f^p)^(1/p) leaves float32 at about 1/20."""


class AnnealsP(PenalizedTrainer):
    """What trainers share whose penalty is a power that falls over the run.

    sparsity_penalty * sum_i f_i^p,  p from p_start to p_end

    With each change of p the weight is multiplied by the mean of sum_i f_i^p over the last steps with the old p, divided by that
    with the new one, so that the penalty keeps its size.
    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenalizedTrainer.Config):
        """Settings of p-annealing."""

        sparsity_function: str = "Lp^p"
        """`Lp^p` for the sum of powers, `Lp` for its root."""
        anneal_start: int | None = None
        """The step at which p begins to fall; by default after a third of the run, at most 15,000."""
        anneal_end: int | None = None
        """The step at which p has reached its end; by default the last."""
        p_start: float = 1.0
        """The power at first."""
        p_end: float = 0.0
        """The power at last; it does not fall below 0.05."""
        n_sparsity_updates: int | Literal["continuous"] = 10
        """In how many steps p falls."""
        sparsity_queue_length: int = 10
        """Steps that the means are taken over."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sparsity_function not in ("Lp^p", "Lp"):
                raise ConfigError(
                    f"P-annealing got sparsity_function={self.sparsity_function!r}; it is 'Lp^p' or 'Lp'."
                )
            if not 0 <= self.p_end <= self.p_start or self.sparsity_queue_length < 1:
                raise ConfigError(
                    f"Got p_start={self.p_start}, p_end={self.p_end} and sparsity_queue_length={self.sparsity_queue_length}; "
                    "0 <= p_end <= p_start and a length of at least 1 are needed."
                )

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        settings = self.settings
        end = self.steps if settings.anneal_end is None else settings.anneal_end
        start = min(15_000, self.steps // 3) if settings.anneal_start is None else settings.anneal_start
        if not 0 <= start < max(end, 1):
            raise ConfigError(
                f"Got anneal_start={start} and anneal_end={end} in a run of {self.steps} steps; the start must come before the end."
            )
        self.config_values = settings.replace(anneal_start=start, anneal_end=end)
        n = end - start if settings.n_sparsity_updates == "continuous" else settings.n_sparsity_updates
        self.n_changes = max(int(n), 1)
        self.weight = torch.ones((), device=self.device)
        """What the penalty's weight was multiplied by so far."""
        self._sums: collections.deque[Tensor] = collections.deque(maxlen=settings.sparsity_queue_length)

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def power(self, step: int) -> float:
        """Returns p at a step."""
        settings = self.settings
        assert settings.anneal_start is not None and settings.anneal_end is not None
        done = (step - settings.anneal_start) / (settings.anneal_end - settings.anneal_start)
        changes = min(max(int(done * self.n_changes), 0), self.n_changes)
        return max(settings.p_start + (settings.p_end - settings.p_start) * changes / self.n_changes, _LEAST_P)

    def penalty(self) -> Penalty:
        p = self.power(self.step)
        return PowerSum(p) if self.settings.sparsity_function == "Lp^p" else PowerNorm(p)

    def reconstruct(self, batch: Batch) -> Loss:
        loss = super().reconstruct(batch)
        # the penalty is scaled as a whole: its weight is a tensor, which changes without the host
        scaled = self.coefficient * loss.terms["sparsity_loss"]
        return Loss(loss.total + (self.weight - 1) * scaled, loss.terms, loss.reconstruction)

    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
        super().observe(gathered)
        old, new = self.power(self.step), self.power(self.step + 1)
        upcoming = self._next_power(self.step)
        sums = [
            torch.stack([mean_sum(powers(self.penalized(loss), p)).detach() for p in (old, upcoming)]) * share
            for share, (_, loss) in zip(self.shares(gathered), gathered, strict=True)
        ]
        self._sums.append(torch.stack(sums).sum(0))
        if new != old:
            means = torch.stack(list(self._sums)).mean(0)
            tiny = torch.finfo(means.dtype).tiny
            self.weight = self.weight * torch.where(means[1] > 0, means[0] / means[1].clamp_min(tiny), 1.0)
            self._sums.clear()

    def penalized(self, loss: Loss) -> Latents:
        """Returns what the penalty is on."""
        return loss.reconstruction.latents

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight": self.weight, "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight = state["weight"].to(self.device)
        self._sums.clear()
        self._sums.extend(sums.to(self.device) for sums in state["sums"])

    def metrics(self) -> dict[str, Tensor]:
        figures = super().metrics()
        if figures:
            figures["p"] = torch.tensor(self.power(max(self.step - 1, 0)))
            figures["sparsity_coefficient"] = figures["sparsity_coefficient"].to(self.device) * self.weight
        return figures

    def _next_power(self, step: int) -> float:
        """Returns the power after the next change."""
        settings = self.settings
        assert settings.anneal_start is not None and settings.anneal_end is not None
        done = (step - settings.anneal_start) / (settings.anneal_end - settings.anneal_start)
        changes = min(max(int(done * self.n_changes), 0) + 1, self.n_changes)
        return max(settings.p_start + (settings.p_end - settings.p_start) * changes / self.n_changes, _LEAST_P)


@TRAINERS.register("p_anneal")
class PAnnealTrainer(AnnealsP):
    """Trains a dictionary with a rectifier and a penalty whose power falls (Karvonen et al. 2024, https://arxiv.org/abs/2408.00113)."""

    default_lr: ClassVar[float] = 1e-3

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()
