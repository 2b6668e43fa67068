"""A source: documents, one after another, that can be resumed, restarted, divided and repeated."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, get_args

from dictionary_learning._border import checked, is_foreign, said
from dictionary_learning._secrets import without_secrets
from dictionary_learning.data._document import BadDocument, Document, Tokenized, TokenRow, check_ids
from dictionary_learning.data._reading import Mark, Reader, hold_out, share, shuffle, take
from dictionary_learning.data._retrying import is_transient, wait_or_raise
from dictionary_learning.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

OnBadDocument = Literal["error", "skip"]


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises a `ConfigError` for an option that has none of the possible values."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ConfigError(f"Got {name}={value!r}; it is {', '.join(others)} or {last}.")


class Source:
    """Documents, one after another.

    A source of an iterator can be read only once: `restart`, `fresh`, `hold_out`, and
    `load_state_dict` of a state before the last `release`, raise a `DataError` then.

    Args:
        reader: Reads the documents from any mark.
        name: The name of the source in configs and errors.
        tokenized: What is known about the token ids; None for text.
        on_bad_document: What happens at a value that is not a document (see `as_source`).
    """

    def __init__(
        self,
        reader: Reader,
        name: str,
        tokenized: Tokenized | None = None,
        on_bad_document: OnBadDocument = "error",
    ):
        check_choice("on_bad_document", on_bad_document, get_args(OnBadDocument))
        self.reader, self.name, self.tokenized = reader, without_secrets(name), tokenized
        self.on_bad_document: OnBadDocument = on_bad_document
        self.position = 0
        """Documents read in this pass, skipped ones included."""
        self.epoch = 0
        """Number of restarts."""
        self.n_skipped = 0
        """Bad documents that were skipped, in all passes."""
        self._mark: Mark = None
        self._documents: Iterator[tuple[Any, Mark]] | None = None
        self._keeps = False  # whether it goes back to states since the last `release`
        self._first, self._step = 0, 1  # numbers in the whole: of the first document, and from one to the next

    @property
    def repeatable(self) -> bool:
        """Whether the documents can be read again."""
        return self.reader.repeatable

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:  # a Document, or an item of an `ExampleStream`
        if not self._keeps:
            self.reader.release(self._mark)
        n_failed = 0
        while True:
            try:
                if self._documents is None:
                    self._documents = self.reader.read(self._mark, self.epoch)
                document, mark = next(self._documents)
                if isinstance(document, BadDocument):
                    self._skip_or_raise(document)
                self._mark, self.position = mark, self.position + 1
            except StopIteration:
                raise
            except BaseException as error:
                self._documents = None  # the next call goes on at this document, and does not report the end
                what = f"Document {self.position} of {self.name}"
                if self.repeatable and isinstance(error, Exception) and is_transient(error):
                    n_failed += 1
                    wait_or_raise(error, n_failed, what)
                    continue
                if not isinstance(error, Exception) or not is_foreign(error):
                    raise
                message = f"{what} cannot be read: {said(error)} Check the data, and what makes them."
                raise DataError(message) from error
            if not isinstance(document, BadDocument):
                return document

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_documents": None}  # a copy reads on from the mark

    def restart(self) -> None:
        """Returns to the first document; a shuffled source gets a new order."""
        self._require_repeatable("restarted")
        self._documents, self._mark, self.position = None, None, 0
        self.epoch += 1

    def fresh(self) -> "Source":
        """Returns a source of the same documents, from the first one on."""
        self._require_repeatable("read from its beginning")
        return self._derive(self.reader, self.name)

    @checked()
    def hold_out(self, every: int) -> tuple["Source", "Source"]:
        """Returns the documents for training, and every n-th one, starting with the first.

        Raises:
            DataError: The source has fewer than two documents, or `every` is below 2.
        """
        self._require_repeatable("divided")
        if every < 2:
            raise DataError(f"Got every={every}; to hold out every n-th document, n must be at least 2.")
        rest, held = hold_out(self.reader, every)
        first, _ = next(rest.read(), (None, None))  # two documents at most are read to know
        if first is None:
            raise DataError(
                f"{self.name} has fewer than two documents. The first of every {every} documents is held out, so none "
                "is left for training. Provide more documents, or do not hold any out."
            )
        is_part = isinstance(first, TokenRow) and (first.runs is not None or first.start is not None)
        if is_part:
            logger.warning(
                "%s holds contexts, not documents: every %dth context is held out, and other parts of its documents "
                "may be in training. For figures on new text, hold documents out before they become tokens.",
                *(self.name, every),
            )
        unit = "context" if is_part else "document"
        return (
            self._derive(rest, f"{self.name} without every {every}th {unit}"),
            self._derive(held, f"every {every}th {unit} of {self.name}"),
        )

    @checked()
    def shuffled(self, seed: int, window: int = 10_000) -> "Source":
        """Returns the documents in a random order, a new one in each pass.

        Args:
            window: Documents shuffled with each other, if documents cannot be fetched by number.

        Raises:
            ConfigError: The window is empty.
        """
        return self._derive(shuffle(self.reader, seed, window), f"{self.name}, shuffled by seed {seed}")

    @checked()
    def share(self, number: int, of: int) -> "Source":
        """Returns one of `of` shares of the documents, which have no document in common.

        Raises:
            DataError: Documents were read already, or there is no share of that number.
        """
        if not 0 <= number < of:
            known = f"they are numbered from 0 to {of - 1}" if of > 0 else "there is at least one"
            raise DataError(f"Got share {number} of {of}; {known}. Give another number.")
        if self.position:
            raise DataError(f"{self.name} was read from already, so it cannot be divided. Build it anew.")
        part = self._derive(share(self.reader, number, of), f"share {number} of {of} of {self.name}")
        part._first, part._step = self.number_of(number), self._step * of
        return part

    def number_of(self, position: int) -> int:
        """Returns the number of a document in the whole, of which this may be a share."""
        return self._first + self._step * position

    @checked()
    def first(self, n: int) -> "Source":
        """Returns the first n documents, bad ones included.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"Got max_examples={n}; it must be at least 1.")
        return self._derive(take(self.reader, n), f"the first {n} documents of {self.name}")

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain data."""
        place = {"position": self.position, "epoch": self.epoch, "mark": self._mark}
        return {"name": self.name, **place, "skipped": self.n_skipped}

    @checked(wraps=DataError)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position: the next document is the one that would have followed.

        Raises:
            DataError: The state belongs to another source.
        """
        if state["name"] != self.name:
            raise DataError(
                f"The state is of '{state['name']}', and this source is '{self.name}'; their positions do not match. "
                "Pass the data that the run was started with."
            )
        if not self.reader.holds(state["mark"]):
            raise DataError(
                f"{self.name} can be read only once, and was read further than the state, which is before its document "
                f"{state['position']}. Load the state into a new source of the same documents, or pass a list, a file "
                "or a data set."
            )
        self._documents, self._mark = None, state["mark"]  # the reader starts at the next document
        self.position, self.epoch = state["position"], state["epoch"]
        self.n_skipped = state.get("skipped", 0)

    @checked(wraps=DataError)
    def release(self, state: dict[str, Any]) -> None:
        """Says that no state before this one is loaded again.

        From the first call on, a source that can be read only once keeps the documents since the
        last, so that it goes back to where an interrupt or an error has ended their use.
        """
        self._keeps = True
        self.reader.release(state["mark"])

    def _derive(self, reader: Reader, name: str) -> "Source":
        return Source(reader, name, self.tokenized, self.on_bad_document)

    def _require_repeatable(self, action: str) -> None:
        if not self.repeatable:
            raise DataError(
                f"{self.name} can be read only once, so it cannot be {action}. Pass a list, a file or a data set."
            )

    def _skip_or_raise(self, document: BadDocument) -> None:
        reason = f"{document.place or f'Document {self.position} of {self.name}'} {document.problem}"
        if self.on_bad_document == "error" and not document.skip:
            raise DataError(f"{reason}; or skip such documents with on_bad_document='skip'.")
        if not self.n_skipped:
            logger.warning("%s. It is skipped, as is every other bad document.", reason)
        self.n_skipped += 1


TextSource = Source
"""An older name of `Source`."""


class EpochReader:
    """Reads a source several times.

    Args:
        source: The documents.
        epochs: The number of passes; None for no limit.
        vocab_size: Returns the number of known token ids, if it is known. It is slow, so it is
            called only for rows of ids.
    """

    def __init__(self, source: Source, epochs: int | None, vocab_size: Callable[[], int | None]):
        if epochs is not None and epochs < 1:
            raise ConfigError(f"Got epochs={epochs}; it must be at least 1, or None for no limit.")
        if epochs != 1 and not source.repeatable:
            raise ConfigError(
                f"Got epochs={epochs}, and {source.name} can be read only once. Pass a list, a file or a data set, or "
                "set epochs=1."
            )
        self.source, self.epochs, self.vocab_size = source, epochs, vocab_size
        self.epoch = 0
        """The number of passes that have ended."""

    def restart(self) -> None:
        """Returns to the first document of the first pass."""
        self.source.restart()
        self.epoch = 0

    def take(self, n: int) -> list[tuple[int, Document]]:
        """Returns up to n documents with their numbers in the source; none after the last pass."""
        found = self._read(n)
        is_last = self.epochs is not None and self.epoch + 1 >= self.epochs
        # a pass without documents would be followed by another one, forever
        if not found and not is_last and self.source.position:
            self.epoch += 1
            logger.info(
                "%s has ended after %d documents and is read again: pass %d of %s.",
                self.source.name, self.source.position, self.epoch + 1, self.epochs or "as many as needed",
            )  # fmt: skip
            self.source.restart()
            found = self._read(n)
        for number, document in found:
            if isinstance(document, TokenRow):
                check_ids(document.ids, self.vocab_size(), f"Row {number} of {self.source.name}")
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.epoch = state["epoch"]

    def _read(self, n: int) -> list[tuple[int, Document]]:
        # the source's position counts skipped documents too, so the number is read after each one
        source = self.source
        return [(source.number_of(source.position - 1), document) for document in islice(source, n)]
