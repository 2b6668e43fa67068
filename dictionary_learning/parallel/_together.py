"""What the ranks of a run do as one: rank 0 acts, or each, and all learn how it went."""

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import TypeVar, cast

from dictionary_learning.errors import RankError
from dictionary_learning.parallel._ranks import Ranks

T = TypeVar("T")


def on_first(world: Ranks, action: Callable[[], T]) -> T | None:
    """Runs an action on rank 0 alone, and returns its result there; an error is raised on all.

    Raises:
        RankError: The action failed on rank 0, whose own error is raised there.
    """
    result, failure, error = None, None, None
    if world.is_first:
        try:
            result = action()
        except Exception as failed:  # noqa: BLE001  (raised below; the others would wait for rank 0)
            failure, error = str(failed), failed
    told = world.patient().share(failure)  # an action may take long, as to read a text
    if error is not None:
        raise error
    if told is not None:
        raise RankError(f"Rank 0 ended the run: {told}")
    return result


def on_each(world: Ranks, action: Callable[[], T]) -> list[T]:
    """Runs an action on every rank, and returns the results of all; an error on one ends all.

    Raises:
        RankError: The action failed on another rank, whose own error is raised there.
    """
    if world.size == 1:
        return [action()]
    result, error = None, None
    try:
        result = action()
    except Exception as failed:  # noqa: BLE001  (raised below; the others would wait for this rank)
        error = failed
    failure = None if error is None else f"{type(error).__name__}: {error}"
    told = world.patient().collect((failure, result))
    if error is not None:
        raise error
    for rank, (failure, _) in enumerate(told):
        if failure is not None:
            raise RankError(f"Rank {rank} ended the job: {failure}")
    return [cast(T, found) for _, found in told]


@contextlib.contextmanager
def only_first_talks(world: Ranks) -> Generator[None]:
    """Silences messages below errors of all ranks but the first, inside the `with` block."""
    log = logging.getLogger("dictionary_learning")
    before = log.level
    if not world.is_first:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
