"""A source: documents, one after another, that can be resumed, restarted and divided."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dictionary_learning.data.document import Conversation, Document, TokenRow
from dictionary_learning.data.reading import Mark, Reader, first, shuffled, split
from dictionary_learning.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """What is known of the token ids that a source gives."""

    tokenizer: str | None = None
    """The name of the tokenizer that made them."""
    fingerprint: str | None = None
    """Of that tokenizer's vocabulary (see `vocabulary.fingerprint`)."""
    ctx_len: int | None = None
    """The length of every row, where all are of one length."""
    first_id: int | None = None
    """The id that every row begins with, where they all begin alike."""
    packing: dict[str, Any] | None = None
    """How the rows were made into contexts, where `pretokenize` made them (see `TokenStream.packing`)."""


class Source:
    """Documents, one after another.

    Args:
        reader: reads them from any mark on.
        name: what the source is called in configs and errors.
        tokenized: what is known of its token ids; None where it gives text.
    """

    def __init__(self, reader: Reader, name: str, tokenized: Tokenized | None = None):
        self.reader, self.name, self.tokenized = reader, name, tokenized
        self.position = 0
        """How many documents were given since the start."""
        self.epoch = 0
        """How often the source was restarted."""
        self._mark: Mark = None
        self._documents: Iterator[tuple[Any, Mark]] | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the documents can be read again."""
        return self.reader.repeatable

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        if self._documents is None:
            self._documents = self.reader.read(self._mark, self.epoch)
        try:
            document, mark = next(self._documents)
        except DataError:
            self._begin_at_mark()
            raise
        if not isinstance(document, (str, TokenRow, Conversation)):
            self._begin_at_mark()
            raise DataError(
                f"Document {self.position} of {self.name} is a {type(document).__name__}; text is needed. "
                "Give an iterable of strings, or name the column that holds text."
            )
        self._mark = mark
        self.position += 1
        return document

    def restart(self) -> None:
        """Begins again at the first document; a source that is shuffled, in another order.

        Raises:
            DataError: the source can be read only once.
        """
        if not self.repeatable:
            raise DataError(f"{self.name} can be read only once. Give a list, a file or a data set to read it again.")
        self._documents, self._mark, self.position = None, None, 0
        self.epoch += 1

    def fresh(self) -> "Source":
        """Returns the same documents, from the first on; where this source stands is not changed.

        Raises:
            DataError: the source can be read only once.
        """
        if not self.repeatable:
            raise DataError(f"{self.name} can be read only once. Give a list, a file or a data set to read it again.")
        return Source(self.reader, self.name, self.tokenized)

    def hold_out(self, every: int) -> tuple["Source", "Source"]:
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
        rest, held = split(self.reader, every)
        return (
            Source(rest, f"{self.name} without every {every}th document", self.tokenized),
            Source(held, f"every {every}th document of {self.name}", self.tokenized),
        )

    def shuffled(self, seed: int, window: int = 10_000) -> "Source":
        """Returns the documents in a random order, another one each time they are read.

        Args:
            seed: of the order.
            window: how many documents are shuffled among each other, where they have no numbers to be fetched by.

        Raises:
            ConfigError: the window is empty.
        """
        if window < 1:
            raise ConfigError(f"Got a window of {window} documents to shuffle; it must be at least 1.")
        name = f"{self.name}, shuffled by seed {seed}"
        return Source(shuffled(self.reader, seed, window), name, self.tokenized)

    def first(self, n: int) -> "Source":
        """Returns the first n documents.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"Got max_examples={n}; it must be at least 1.")
        return Source(first(self.reader, n), f"the first {n} documents of {self.name}", self.tokenized)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, as plain data."""
        return {"name": self.name, "position": self.position, "epoch": self.epoch, "mark": self._mark}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next document is the one that would have come next.

        Raises:
            DataError: the state is of another source, or this one was read from and can be read only once.
        """
        if state["name"] != self.name:
            raise DataError(
                f"The state is of '{state['name']}', and this source is '{self.name}'; positions are not the same in both. "
                "Give the data that the run was started with."
            )
        if self._documents is not None and not self.repeatable:
            raise DataError(
                f"{self.name} was read from already and can be read only once; load the state into a fresh one."
            )
        self._documents, self._mark = None, state["mark"]
        self.position, self.epoch = state["position"], state["epoch"]

    def _begin_at_mark(self) -> None:
        """Makes what is asked for after an error the same document again, and not the end of the data."""
        if self.repeatable:
            self._documents = None


TextSource = Source
"""The name it was first known by."""
