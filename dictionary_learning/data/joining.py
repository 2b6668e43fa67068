"""Documents made of others: conversations written out, and short texts joined into longer ones."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dictionary_learning.data.document import TokenRow
from dictionary_learning.data.reading import Mark, Reader
from dictionary_learning.data.tokenizing import as_texts
from dictionary_learning.errors import DataError


@dataclasses.dataclass(frozen=True)
class Written(Reader):
    """Documents as text: conversations as a tokenizer's template writes them."""

    reader: Reader
    tokenizer: Any

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can be read again."""
        return self.reader.repeatable

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the texts."""
        for document, following in self.reader.read(mark, epoch):
            if isinstance(document, TokenRow):
                raise DataError("The data holds token ids, which are not written out. Name the column that holds text.")
            yield as_texts([document], self.tokenizer)[0], following


@dataclasses.dataclass(frozen=True)
class Joined(Reader):
    """Texts joined until they are long enough.

    Args:
        reader: the texts.
        min_chars: how many characters a document has at least, but for the last.
        separator: stands between two texts.
    """

    reader: Reader
    min_chars: int
    separator: str

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can be read again."""
        return self.reader.repeatable

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the joined texts, with the mark of the text that the next begins with."""
        joined, following = "", mark
        for text, following in self.reader.read(mark, epoch):
            joined = f"{joined}{self.separator}{text}" if joined else text
            if len(joined) >= self.min_chars:
                yield joined, following
                joined = ""
        if joined:
            yield joined, following
