"""Documents on their way from a source to contexts: numbered, checked, and read as often as is asked for."""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

from dictionary_learning.data.document import Document, TokenRow
from dictionary_learning.data.source import Source
from dictionary_learning.data.vocabulary import check_ids
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)


class Feed:
    """The documents of a source, pass after pass.

    Args:
        source: the documents.
        epochs: how often they are read; None for without end.
        vocab_size: returns the number of ids that are known; None where nothing is known of them.

    Raises:
        ConfigError: `epochs` is below 1, or the source can be read only once.
    """

    def __init__(self, source: Source, epochs: int | None, vocab_size: Callable[[], int | None]):
        if epochs is not None and epochs < 1:
            raise ConfigError(f"Got epochs={epochs}; it must be at least 1, or None for without end.")
        if epochs != 1 and not source.repeatable:
            raise ConfigError(
                f"Got epochs={epochs}, and {source.name} can be read only once. Give a list, a file or a data set, or leave epochs at 1."
            )
        self.source, self.epochs, self.vocab_size = source, epochs, vocab_size
        self.clear()

    def clear(self) -> None:
        """Counts from the first pass on."""
        self.epoch = 0
        """How many passes have ended."""

    def take(self, n: int) -> list[tuple[int, Document]]:
        """Returns the next documents, n or fewer, each with its number in the source; none at the end of the last pass.

        Raises:
            DataError: a row has a token id that is not in the vocabulary.
        """
        found = list(islice(self.source, n))
        if not found and self._again():
            found = list(islice(self.source, n))
        begin = self.source.position - len(found)
        for number, document in enumerate(found, begin):
            # text needs no look at the vocabulary, which takes a while
            if isinstance(document, TokenRow) and (known := self.vocab_size()) is not None:
                check_ids(document.ids, known, f"Row {number} of {self.source.name}")
        return list(enumerate(found, begin))

    def state_dict(self) -> dict[str, Any]:
        """Returns the pass, and the position in it."""
        return {"source": self.source.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self.source.load_state_dict(state["source"])
        self.epoch = state["epoch"]

    def _again(self) -> bool:
        more = self.epochs is None or self.epoch + 1 < self.epochs
        # a pass without documents would be followed by another one, for ever
        if not more or not self.source.position:
            return False
        self.epoch += 1
        logger.info(
            "%s has ended after %d documents and is read again: pass %d of %s.",
            self.source.name,
            self.source.position,
            self.epoch + 1,
            self.epochs or "as many as are needed",
        )
        self.source.restart()
        return True
