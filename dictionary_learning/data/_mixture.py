"""A mixture: several sources at once, each with a share of the documents."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from dictionary_learning._border import checked
from dictionary_learning._types import TextLike
from dictionary_learning.data._document import BadDocument, Tokenized
from dictionary_learning.data._reading import Mark, Reader, hold_out
from dictionary_learning.data._source import Source
from dictionary_learning.data._text import as_source
from dictionary_learning.errors import ConfigError, DataError

Exhausted = Literal["stop", "restart", "continue"]


@dataclasses.dataclass(frozen=True)
class MixtureReader(Reader):
    """Documents drawn from several readers.

    Draw n depends only on the seed, the epoch and n, so no random state is stored. The mark holds
    the number of draws and, for each reader, its mark, its epoch and whether it has ended.
    """

    readers: Sequence[Reader]
    weights: Sequence[float]
    seed: int
    exhausted: Exhausted
    skips: Sequence[bool]
    """Whether the bad documents of each reader are skipped."""

    @property
    def repeatable(self) -> bool:
        return all(reader.repeatable for reader in self.readers)

    def inside(self, mark: Mark) -> list[tuple[Reader, Mark]]:
        return list(zip(self.readers, mark[1] if mark else [None] * len(self.readers), strict=True))

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        size = len(self.readers)
        n, marks, epochs, ended = mark or (0, [None] * size, [epoch] * size, [False] * size)
        marks, epochs, ended = list(marks), list(epochs), list(ended)
        iterators = [r.read(m, e) for r, m, e in zip(self.readers, marks, epochs, strict=True)]
        while True:
            # a restarted reader stays in the draw after its end
            left = [i for i in range(size) if self.exhausted == "restart" or not ended[i]]
            if not left:
                return
            # a new generator for each draw: a state would have to store it otherwise
            chance = random.Random(f"{self.seed}:{epoch}:{n}")
            i = chance.choices(left, [self.weights[i] for i in left])[0]
            found = next(iterators[i], None)
            if found is None:
                ended[i] = True
                if self.exhausted == "stop" or all(ended):
                    return
                if self.exhausted == "continue":
                    continue  # draws again with the same n, among those that are left
                epochs[i] += 1
                iterators[i] = self.readers[i].read(None, epochs[i])
                found = next(iterators[i], None)
                if found is None:
                    raise DataError(f"Part {i} of the mixture holds no document, so it cannot be restarted. Remove it.")
            document, marks[i] = found
            if isinstance(document, BadDocument):
                document = dataclasses.replace(document, skip=document.skip or self.skips[i])
            n += 1
            yield document, [n, list(marks), list(epochs), list(ended)]


@hold_out.register
def _(reader: MixtureReader, every: int) -> tuple[Reader, Reader]:
    # each part is divided: a document that a restarted part yields twice must not be on both sides
    parts = [hold_out(part, every) for part in reader.readers]
    rest, held = (dataclasses.replace(reader, readers=[part[side] for part in parts]) for side in (0, 1))
    return rest, held


@checked()
def mix(
    sources: Sequence[TextLike],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    exhausted: Exhausted = "stop",
    name: str | None = None,
) -> Source:
    """Returns documents drawn from several sources.

    Args:
        sources: The sources, or any data that `as_source` accepts.
        weights: How often each source is drawn, relative to the others; equal by default.
        exhausted: What happens when a source ends. `stop` ends the mixture, `continue` draws from
            the others until all have ended, and `restart` restarts the source until each has been
            read once.

    Raises:
        ConfigError: The weights do not match the sources, or a source that can be read only once
            would have to be restarted.
    """
    parts = [as_source(source) for source in sources]
    shares = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if not parts or len(shares) != len(parts) or not all(w > 0 for w in shares):
        raise ConfigError(
            f"Got {len(parts)} sources with the weights {shares}; a mixture needs sources, and a weight above 0 for "
            "each."
        )
    once = [part.name for part in parts if not part.repeatable]
    if exhausted == "restart" and once:
        raise ConfigError(f"{once[0]} can be read only once, so it cannot be restarted. Set exhausted='continue'.")
    total = sum(shares)
    contents = ", ".join(f"{w / total:.3g} {p.name}" for w, p in zip(shares, parts, strict=True))
    skips = [part.on_bad_document == "skip" for part in parts]
    reader = MixtureReader([part.reader for part in parts], shares, seed, exhausted, skips)
    return Source(reader, name or f"a mixture of {contents}", _tokenized([part.tokenized for part in parts]))


def _tokenized(known: Sequence[Tokenized | None]) -> Tokenized | None:
    """Returns what is true of all parts; None only if all hold text."""
    if all(t == known[0] for t in known):
        return known[0]
    tokenizers = [(t.tokenizer, t.fingerprint) for t in known if t is not None]
    if len({fingerprint for _, fingerprint in tokenizers if fingerprint is not None}) > 1:
        names = ", ".join(sorted({str(name) for name, _ in tokenizers}))
        raise DataError(
            f"The parts of the mixture were tokenized by different tokenizers: {names}. Tokenize them with one."
        )
    # a fingerprint can be checked, a name cannot; parts that say nothing do not count
    return Tokenized(*max(tokenizers, key=lambda one: (one[1] is not None, one[0] is not None)))
