"""Which rank the others wait for."""

import logging
import time

from dictionary_learning.parallel._ranks import Ranks

logger = logging.getLogger(__name__)

_EVERY = 50
"""Steps between two looks."""
_THRESHOLD = 0.25
"""Share of the time that is lost by waits for one rank, from which on that is said."""
_MICROSECONDS = 1e6


class Waits:
    """Names the rank that the others wait for: the one that waits least itself.

    Its text is longer, its device slower, its disk, or it evaluates.

    Args:
        world: All ranks.
        every: Steps between two comparisons.
        threshold: Share of the time that the others wait more than the slowest rank, from which on
            rank 0 logs which one it is.
    """

    def __init__(self, world: Ranks, every: int = _EVERY, threshold: float = _THRESHOLD):
        self.world, self.every, self.threshold = world, every, threshold
        self._n_steps, self._started, self._waited = 0, time.monotonic(), world.waited()

    def step(self) -> None:
        """Counts a step, and compares the ranks at times; all call it together."""
        self._n_steps += 1
        if self.world.size > 1 and self._n_steps % self.every == 0:
            self._compare()

    def _compare(self) -> None:
        now, waited = time.monotonic(), self.world.waited()
        elapsed, own = now - self._started, waited - self._waited
        told = [n / _MICROSECONDS for (n,) in self.world.tell([int(own * _MICROSECONDS)])]
        slowest = min(range(len(told)), key=lambda rank: told[rank])
        usual = sorted(told)[len(told) // 2]
        if usual - told[slowest] > self.threshold * elapsed:
            logger.warning(
                "The ranks wait for rank %d: in the last %d steps (%.1f s) the others waited %.1f s, and it %.1f s.",
                slowest, self.every, elapsed, usual, told[slowest],
            )  # fmt: skip
        self._started, self._waited = now, self.world.waited()
