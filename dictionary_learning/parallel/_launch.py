"""How `torchrun` and others say in the environment that a process is one of several."""

import datetime
import os

from dictionary_learning.errors import ConfigError

TIMEOUT = "DICTIONARY_LEARNING_RANK_TIMEOUT"
"""Seconds after which a rank that waits for another one ends with an error."""
_SECONDS = 600


def timeout() -> datetime.timedelta:
    """Returns how long a rank waits for another one.

    Raises:
        ConfigError: What the environment says is no number of seconds.
    """
    seconds = os.environ.get(TIMEOUT, str(_SECONDS))
    if not seconds.isdigit() or int(seconds) < 1:
        raise ConfigError(f"Got {TIMEOUT}={seconds!r}; give a number of seconds.")
    return datetime.timedelta(seconds=int(seconds))


def world_size() -> int:
    """Returns the number of processes of the job; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Returns the number of this process among those on its machine."""
    return _number("LOCAL_RANK", 0)


def refuse_several(what: str, instead: str) -> None:
    """Refuses what several processes would do at once, over each other's files.

    Raises:
        ConfigError: The job has several processes.
    """
    if world_size() > 1:
        raise ConfigError(f"{what} runs in one process, and this job has {world_size()} (WORLD_SIZE). {instead}")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
