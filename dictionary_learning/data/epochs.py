"""Documents of a source, pass after pass: numbered, and checked against the vocabulary."""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

from dictionary_learning.data.document import Document, TokenRow
from dictionary_learning.data.source import Source
from dictionary_learning.data.tokenizing import check_ids
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)


class EpochReader:
    """Reads a source several times.

    Args:
        source: The documents.
        epochs: The number of passes; None for no limit.
        vocab_size: Returns the number of known token ids; None if unknown.

    Raises:
        ConfigError: `epochs` is below 1, or the source can be read only once.
    """

    def __init__(self, source: Source, epochs: int | None, vocab_size: Callable[[], int | None]):
        if epochs is not None and epochs < 1:
            raise ConfigError(f"Got epochs={epochs}; it must be at least 1, or None for no limit.")
        if epochs != 1 and not source.repeatable:
            raise ConfigError(
                f"Got epochs={epochs}, and {source.name} can be read only once. Pass a list, a file or a data set, or set epochs=1."
            )
        self.source, self.epochs, self.vocab_size = source, epochs, vocab_size
        self.epoch = 0
        """The number of passes that have ended."""

    def restart(self) -> None:
        """Returns to the first document of the first pass."""
        self.source.restart()
        self.epoch = 0

    def take(self, n: int) -> list[tuple[int, Document]]:
        """Returns up to n documents, each with its number in the source; none after the last pass.

        Raises:
            DataError: A row has a token id that is not in the vocabulary.
        """
        found = self._read(n)
        if not found and self._start_next_pass():
            found = self._read(n)
        for number, document in found:
            if isinstance(document, TokenRow):  # text does not need the vocabulary, which is slow to read
                check_ids(document.ids, self.vocab_size(), f"Row {number} of {self.source.name}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the pass, and the position in it."""
        return {"source": self.source.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position."""
        self.source.load_state_dict(state["source"])
        self.epoch = state["epoch"]

    def _read(self, n: int) -> list[tuple[int, Document]]:
        # the source's position counts skipped documents too, so the number is read after each one
        return [(self.source.position - 1, document) for document in islice(self.source, n)]

    def _start_next_pass(self) -> bool:
        is_last = self.epochs is not None and self.epoch + 1 >= self.epochs
        # a pass without documents would be followed by another one, forever
        if is_last or not self.source.position:
            return False
        self.epoch += 1
        logger.info(
            "%s has ended after %d documents and is read again: pass %d of %s.",
            self.source.name, self.source.position, self.epoch + 1, self.epochs or "as many as needed",
        )  # fmt: skip
        self.source.restart()
        return True
