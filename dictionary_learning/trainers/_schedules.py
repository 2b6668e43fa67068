"""Quantities that change over a run, as functions of the step.

A schedule maps a step, counted from 0, to the factor of the learning rate. Schedules are pure:
there is nothing to save, and a run can resume anywhere. No step of a run has the factor 0.
"""

import dataclasses
import math
from collections.abc import Callable

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError

Schedule = Callable[[int], float]

SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")
"""Learning-rate schedules by name. Each is built from the length of the run and its warm-up."""


@SCHEDULES.register("linear")
@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, constant, then linear decay to 0 at the end.

    At step t: min((t + 1) / warmup, 1, (steps - t) / (steps - decay_start)).

    There is no decay where `decay_start` is `steps`. Raises ConfigError where the warm-up or the
    decay does not fit into the run.
    """

    steps: int
    warmup: int
    decay_start: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.decay_start <= self.steps:
            raise ConfigError(
                f"Got warmup_steps={self.warmup}, decay_start={self.decay_start} and steps={self.steps}; "
                "0 <= warmup_steps <= decay_start <= steps is needed. Leave both out for fractions of the run."
            )

    def __call__(self, step: int) -> float:
        decay = (self.steps - step) / (self.steps - self.decay_start) if self.decay_start < self.steps else 1.0
        return max(min(_warmup_factor(step, self.warmup), decay), 0.0)


@SCHEDULES.register("cosine")
@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then cosine decay from 1 to `final`, `n_cycles` times.

    Each cycle restarts at 1, and after the run the factor is `final`. Raises ConfigError where the
    warm-up and the cycles do not fit into the run, or `final` is not in [0, 1].
    Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983, with cycles of one length.
    """

    steps: int
    warmup: int = 0
    n_cycles: int = 1
    final: float = 0.1

    def __post_init__(self) -> None:
        constant(self.steps, self.warmup)  # refuses a warm-up that does not fit
        if not 0 <= self.final <= 1 or not 1 <= self.n_cycles <= max(self.steps - self.warmup, 1):
            raise ConfigError(
                f"Got n_cycles={self.n_cycles} and final={self.final} for {self.steps - self.warmup} steps after the "
                "warm-up; at least one cycle, a step for each, and final in [0, 1] are needed."
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _warmup_factor(step, self.warmup)
        if step >= self.steps:
            return self.final
        # in whole numbers, so that rounding does not decide where a cycle starts
        length = self.steps - self.warmup
        progress = (step - self.warmup) * self.n_cycles % length / length
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@SCHEDULES.register("constant")
def constant(steps: int, warmup: int = 0) -> WarmupDecay:
    """Returns a linear warm-up, then a constant factor of 1."""
    return WarmupDecay(steps, warmup, decay_start=steps)


@SCHEDULES.register("cosine_restarts")
def cosine_restarts(steps: int, warmup: int = 0) -> Cosine:
    """Returns `Cosine` with four cycles, or as many as there are steps."""
    return Cosine(steps, warmup, n_cycles=max(min(4, steps - warmup), 1))


@dataclasses.dataclass(frozen=True)
class Rewarm:
    """Another schedule, with a new warm-up after each multiple of `every` steps, as for resampling.

    Raises ConfigError where a warm-up would not end before the next one starts.
    """

    schedule: Schedule
    every: int
    warmup: int

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.warmup <= self.every:
            raise ConfigError(
                f"Got a new warm-up of {self.warmup} steps every {self.every} steps; 0 <= warm-up <= every and "
                "every >= 1 are needed. Lower the warm-up."
            )

    def __call__(self, step: int) -> float:
        start = step - step % self.every  # 0 before the first event, where the schedule has its own warm-up
        return self.schedule(step) * (_warmup_factor(step - start, self.warmup) if start else 1.0)


def ramp(step: int, steps: int) -> float:
    """Returns min(step / steps, 1); 1 where `steps` is 0."""
    return 1.0 if step >= steps else step / steps


def annealed_k(k: int, start: int, step: int, over: int | None) -> int:
    """Returns the k of a step that decays linearly from `start` to `k` over a number of steps."""
    # not below k after the last step of the annealing
    return k if over is None else k + round((start - k) * max(0.0, 1 - step / over))


def _warmup_factor(step: int, warmup: int) -> float:
    # step + 1: the first step of a run moves weights
    return min((step + 1) / warmup, 1.0) if warmup else 1.0
