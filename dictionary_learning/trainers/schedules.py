"""How a quantity changes over a run.

A schedule is called with a step, from 0 on, and answers with what the learning rate is multiplied by; a `Ramp` answers with the
quantity itself. All are plain functions of the step: there is nothing to save, and a run can go on anywhere.
"""

import dataclasses
import math
from collections.abc import Callable

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError

Schedule = Callable[[int], float]

SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")
"""Learning-rate schedules; each begins with the fields `steps` and `warmup`, and no step of the run has the factor 0."""


@SCHEDULES.register("linear")
@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """A factor that rises to 1, stays, and falls to 0 at the end.

    At step t (from 0): min((t + 1) / warmup, 1, (steps - t) / (steps - decay_start)). No step has the factor 0.

    Args:
        steps: length of the run.
        warmup: steps of the rise; 0 for none.
        decay_start: the step at which the fall begins; `steps` for none.

    Raises:
        ConfigError: the rise or the fall does not fit into the run.
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
        rise = (step + 1) / self.warmup if self.warmup else 1.0
        fall = (self.steps - step) / (self.steps - self.decay_start) if self.decay_start < self.steps else 1.0
        return max(min(rise, 1.0, fall), 0.0)


@SCHEDULES.register("constant")
@dataclasses.dataclass(frozen=True)
class Constant:
    """A factor that rises to 1 and stays.

    Args:
        steps: length of the run.
        warmup: steps of the rise; 0 for none.

    Raises:
        ConfigError: the rise does not fit into the run.
    """

    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup)

    def __call__(self, step: int) -> float:
        return _rise(step, self.warmup)


@SCHEDULES.register("cosine")
@dataclasses.dataclass(frozen=True)
class Cosine:
    """A factor that rises to 1 and falls along half a cosine.

    At step t after the rise: final + (1 - final) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2.

    Args:
        steps: length of the run; from there on the factor is `final`.
        warmup: steps of the rise; 0 for none.
        final: the factor at the end.

    Raises:
        ConfigError: the rise does not fit into the run, or `final` is not in [0, 1].
    """

    steps: int
    warmup: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup)
        _check_final(self.final, least=0.0)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(step, self.warmup)
        return _half_cosine(_progress(step, self.steps, self.warmup), self.final)


@SCHEDULES.register("cosine_restarts")
@dataclasses.dataclass(frozen=True)
class CosineRestarts:
    """A factor that rises to 1 and falls along half a cosine, several times; each time from 1.

    Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983, with cycles of one length.

    Args:
        steps: length of the run; from there on the factor is `final`.
        warmup: steps of the rise before the first cycle; 0 for none.
        n_cycles: how many times the factor falls.
        final: the factor at the end of a cycle.

    Raises:
        ConfigError: the rise and the cycles do not fit into the run, or `final` is not in [0, 1].
    """

    steps: int
    warmup: int = 0
    n_cycles: int = 4
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup)
        _check_final(self.final, least=0.0)
        if not 1 <= self.n_cycles <= max(self.steps - self.warmup, 1):
            raise ConfigError(
                f"Got n_cycles={self.n_cycles} for {self.steps - self.warmup} steps after the warm-up; at least one cycle, and a step "
                "for each, is needed. Lower n_cycles or warmup_steps."
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(step, self.warmup)
        if step >= self.steps:
            return self.final
        # in whole numbers: where a cycle begins must not hang on rounding
        length = self.steps - self.warmup
        return _half_cosine((step - self.warmup) * self.n_cycles % length / length, self.final)


@SCHEDULES.register("inverse_sqrt")
@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """A factor that rises to 1 and falls as one over the root of the step; it does not depend on the length of the run.

    At step t: min((t + 1) / warmup, sqrt(warmup / (t + 1))), with a warm-up of at least 1.
    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3.

    Args:
        steps: length of the run.
        warmup: steps of the rise, which also are the scale of the fall.

    Raises:
        ConfigError: the rise does not fit into the run.
    """

    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup)

    def __call__(self, step: int) -> float:
        warmup = max(self.warmup, 1)
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


@SCHEDULES.register("exponential")
@dataclasses.dataclass(frozen=True)
class Exponential:
    """A factor that rises to 1 and falls by the same share with each step.

    At step t after the rise: final^((t - warmup) / (steps - warmup)).

    Args:
        steps: length of the run; from there on the factor is `final`.
        warmup: steps of the rise; 0 for none.
        final: the factor at the end.

    Raises:
        ConfigError: the rise does not fit into the run, or `final` is not in (0, 1].
    """

    steps: int
    warmup: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup)
        _check_final(self.final, least=math.ulp(0.0))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(step, self.warmup)
        return self.final ** _progress(step, self.steps, self.warmup)


@dataclasses.dataclass(frozen=True)
class Rewarm:
    """A schedule with a new rise after each event that comes at regular steps, as resampling does.

    The rise multiplies: (t - m + 1) / warmup, at most 1, where m is the last multiple of `every` that is neither 0 nor above
    `last`. Step m is the first of a rise: that with which m updates have been made.

    Args:
        schedule: what is multiplied.
        every: steps from one event to the next.
        warmup: steps of a rise; 0 for none.
        last: the last step at which a rise may begin; None for no last one.

    Raises:
        ConfigError: a rise would not be over before the next begins, or a number of steps cannot be used.
    """

    schedule: Schedule
    every: int
    warmup: int
    last: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.warmup <= self.every:
            raise ConfigError(
                f"Got a new warm-up of {self.warmup} steps every {self.every} steps; 0 <= warm-up <= every and every >= 1 are needed. "
                "Lower the warm-up."
            )
        if self.last is not None and self.last < 0:
            raise ConfigError(
                f"Got last={self.last} for new warm-ups; a step from 0 on is needed. Leave it out for no last one."
            )

    def __call__(self, step: int) -> float:
        until = step if self.last is None else min(step, self.last)
        begin = until - until % self.every
        return self.schedule(step) * (_rise(step - begin, self.warmup) if begin else 1.0)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A quantity that goes linearly from one value to another and stays: a coefficient, a k, an exponent.

    At step t: start + (end - start) min(t / steps, 1). The first step has `start`, step `steps` is the first with `end`.

    Args:
        steps: how long the way is; 0 to begin with `end`.
        start: the first value.
        end: the last value.

    Raises:
        ConfigError: a negative number of steps.
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(
                f"Got a ramp of {self.steps} steps; 0 or more are needed. Use 0 to begin with the last value."
            )

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps)


def annealed_k(k: int, start: int, step: int, over: int | None) -> int:
    """Returns the number of latents kept at a step: falls linearly from `start` to k over so many steps.

    Raises:
        ConfigError: a number of steps that is not positive.
    """
    if over is None:
        return k
    if over < 1:
        raise ConfigError(f"Got k_anneal_steps={over}; it must be at least 1, or None for no annealing.")
    return k + round((start - k) * max(0.0, 1 - step / over))


def _check_warmup(steps: int, warmup: int) -> None:
    if not 0 <= warmup <= steps:
        raise ConfigError(
            f"Got warmup_steps={warmup} and steps={steps}; 0 <= warmup_steps <= steps is needed. "
            "Lower warmup_steps or make the run longer."
        )


def _check_final(final: float, least: float) -> None:
    if not least <= final <= 1:
        needed = "above 0 and at most 1" if least else "from 0 to 1"
        raise ConfigError(f"Got final={final} as the factor at the end of the run; it must be {needed}. Use 0.1.")


def _rise(step: int, warmup: int) -> float:
    return min((step + 1) / warmup, 1.0) if warmup else 1.0


def _progress(step: int, steps: int, warmup: int) -> float:
    """Returns which share of the way from the warm-up to the end lies behind a step."""
    return min((step - warmup) / (steps - warmup), 1.0) if steps > warmup else 1.0


def _half_cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
