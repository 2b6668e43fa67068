"""Which rank the others wait for."""

import logging
import time

from dictionary_learning.parallel._ranks import Ranks

logger = logging.getLogger(__name__)

_EVERY = 50
"""Steps between two looks."""
_THRESHOLD = 0.25
"""Share of the time of a step, as a wait for one rank, from which on that is said."""
_MICROSECONDS = 1e6


class Waits:
    """Measures how long each rank works on its own between two steps, and names a slow one.

    All ranks leave a step together, so the one that comes last to the next is the one that the
    others wait for: its text is longer, its device slower, or its disk.

    Args:
        world: All ranks.
        threshold: Share of the time, lost by a wait for the slowest rank, from which on rank 0
            logs which one it is.
    """

    def __init__(self, world: Ranks, threshold: float = _THRESHOLD):
        self.world, self.threshold = world, threshold
        self._since: float | None = None
        self._busy, self._n_steps, self._started = 0.0, 0, time.monotonic()
        self.slowest: int | None = None
        """The rank that was named last."""

    def leave(self) -> None:
        """Notes that the ranks have met, as at the end of a step."""
        self._since = time.monotonic()

    def arrive(self) -> None:
        """Notes that this rank is about to wait for the others; looks at all of them at times."""
        if self.world.size == 1 or self._since is None:
            return
        self._busy += time.monotonic() - self._since
        self._n_steps += 1
        if self._n_steps == _EVERY:
            self.look()

    def look(self) -> None:
        """Compares all ranks, and logs which one the others wait for, if they do for long."""
        elapsed = time.monotonic() - self._started
        told = self.world.tell([int(self._busy * _MICROSECONDS)])
        busy = [n / _MICROSECONDS for (n,) in told]
        slowest = max(range(len(busy)), key=lambda rank: busy[rank])
        usual = sorted(busy)[(len(busy) - 1) // 2]  # of two, the faster one
        lost = busy[slowest] - usual
        if lost > self.threshold * elapsed:
            self.slowest = slowest
            logger.warning(
                "The ranks wait for rank %d: of the last %.1f s it was alone at work for %.1f s, others for %.1f s.",
                slowest, elapsed, busy[slowest], usual,
            )  # fmt: skip
        self._busy, self._n_steps, self._started = 0.0, 0, time.monotonic()
