"""What gives text: documents, one after another."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from dictionary_learning.errors import DataError


class TextSource:
    """Documents, one after another.

    Args:
        open: returns an iterator over the documents from the first on.
        name: what the source is called in configs and errors.
        repeatable: whether `open` can be called again for the same documents.
    """

    def __init__(self, open: Callable[[], Iterator[str]], name: str, repeatable: bool = True):
        self._open = open
        self.name = name
        self.repeatable = repeatable
        self.position = 0
        """How many documents were given since the start."""
        self._documents: Iterator[str] | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._documents is None:
            self._documents = islice(self._open(), self.position, None)
        document = next(self._documents)
        if not isinstance(document, str):
            raise DataError(
                f"Document {self.position} of {self.name} is a {type(document).__name__}; text is needed. "
                "Give an iterable of strings, or name the column that holds text."
            )
        self.position += 1
        return document

    def restart(self) -> None:
        """Begins again at the first document.

        Raises:
            DataError: the source can be read only once.
        """
        if not self.repeatable:
            raise DataError(f"{self.name} can be read only once. Give a list, a file or a data set to read it again.")
        self._documents, self.position = None, 0

    def hold_out(self, every: int) -> tuple["TextSource", "TextSource"]:
        """Splits the source: every n-th document, from the first on, is held out.

        Returns:
            The documents to train on, and those held out.

        Raises:
            DataError: the source can be read only once, or `every` is below 2.
        """
        if not self.repeatable:
            raise DataError(
                f"{self.name} can be read only once, so no part of it can be held out. Give a list, a file or a data set."
            )
        if every < 2:
            raise DataError(f"Got every={every}; to hold out every n-th document, n must be at least 2.")
        opened = self._open

        def part(held: bool) -> Callable[[], Iterator[str]]:
            return lambda: (text for n, text in enumerate(opened()) if (n % every == 0) == held)

        rest = TextSource(part(False), f"{self.name} without every {every}th document")
        return rest, TextSource(part(True), f"every {every}th document of {self.name}")

    def state_dict(self) -> dict[str, Any]:
        """Returns the position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next document is the one that would have come next."""
        if self._documents is not None and not self.repeatable:
            raise DataError(
                f"{self.name} was read from already and can be read only once; load the state into a fresh one."
            )
        self._documents, self.position = None, state["position"]
