"""How a quantity changes over a run."""

import dataclasses

from dictionary_learning.errors import ConfigError


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
