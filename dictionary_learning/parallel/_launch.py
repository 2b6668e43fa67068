"""How `torchrun` and others say in the environment that a process is one of several."""

import os

from dictionary_learning.errors import ConfigError


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
