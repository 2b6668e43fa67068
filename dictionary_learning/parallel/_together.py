"""What the ranks of a run do as one: rank 0 acts, and all learn how it went."""

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import TypeVar

from dictionary_learning.errors import DictionaryLearningError, RankError
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
        except DictionaryLearningError as failed:
            failure, error = str(failed), failed
    told = world.patient().share(failure)  # an action may take long, as to read a text
    if error is not None:
        raise error
    if told is not None:
        raise RankError(f"Rank 0 ended the run: {told}")
    return result


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
