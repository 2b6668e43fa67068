"""How the ranks of a job are divided into those that train and those that trace.

The last ranks trace. The data have as many shares as both kinds can divide evenly, and each rank
has a stretch of them: so a share is traced on one rank, and trained on by one.
"""

import math

from dictionary_learning.errors import ConfigError


def n_shares(n_ranks: int, tracing_ranks: int | None = None) -> int:
    """Returns the shares of the data of a job of several ranks, of which some may only trace."""
    return math.lcm(n_ranks - tracing_ranks, tracing_ranks) if tracing_ranks else n_ranks


def overlapping(n_training: int, n_tracing: int) -> list[tuple[int, int]]:
    """Returns the pairs (training, tracing) of ranks that have shares in common."""
    pairs = ((trains, traces) for trains in range(n_training) for traces in range(n_tracing))
    return [(a, b) for a, b in pairs if a * n_tracing < (b + 1) * n_training and b * n_training < (a + 1) * n_tracing]


def check_division(n_ranks: int, tracing_ranks: int) -> None:
    """Checks how many ranks of a job trace.

    Raises:
        ConfigError: None of them trains, or none traces.
    """
    if not 1 <= tracing_ranks < n_ranks:
        raise ConfigError(
            f"Got tracing_ranks={tracing_ranks} in a job of {n_ranks} process{'es' if n_ranks > 1 else ''}. Some ranks "
            "trace and some train: start at least two by torchrun, of which tracing_ranks are fewer than all; or leave "
            "it out."
        )
