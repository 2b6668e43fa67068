"""Several sources at once, each with its share of the documents."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from dictionary_learning.data.reading import Mark, Reader, split
from dictionary_learning.data.source import Source, Tokenized
from dictionary_learning.data.text import as_source
from dictionary_learning.errors import ConfigError, DataError

Exhausted = Literal["stop", "restart", "continue"]


@dataclasses.dataclass(frozen=True)
class Mixture(Reader):
    """Documents drawn from several readers; draw n depends on the seed, the epoch and n alone, so nothing random is kept."""

    readers: Sequence[Reader]
    weights: Sequence[float]
    seed: int
    exhausted: Exhausted

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can all be read again."""
        return all(reader.repeatable for reader in self.readers)

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the count of draws and, for each reader, its mark, its epoch and whether it has ended."""
        many = len(self.readers)
        n, marks, epochs, ended = mark or (0, [None] * many, [epoch] * many, [False] * many)
        marks, epochs, ended = list(marks), list(epochs), list(ended)
        readings = [r.read(m, e) for r, m, e in zip(self.readers, marks, epochs, strict=True)]
        while True:
            left = [i for i in range(many) if self.exhausted == "restart" or not ended[i]]
            if not left:
                return
            chance = random.Random(f"{self.seed}:{epoch}:{n}")
            i = chance.choices(left, [self.weights[i] for i in left])[0]
            found = next(readings[i], None)
            if found is None:
                ended[i] = True
                if self.exhausted == "stop" or all(ended):
                    return
                if self.exhausted == "continue":
                    continue
                epochs[i] += 1
                readings[i] = self.readers[i].read(None, epochs[i])
                found = next(readings[i], None)
                if found is None:
                    raise DataError(
                        f"Part {i} of the mixture holds no document, so it cannot be restarted. Leave it out."
                    )
            document, marks[i] = found
            n += 1
            yield document, [n, list(marks), list(epochs), list(ended)]


@split.register
def _(reader: Mixture, every: int) -> tuple[Reader, Reader]:
    # each part is split: what a restarted part gives twice must not stand on both sides
    parts = [split(part, every) for part in reader.readers]
    rest, held = (dataclasses.replace(reader, readers=[part[side] for part in parts]) for side in (0, 1))
    return rest, held


def mix(
    sources: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    exhausted: Exhausted = "stop",
    name: str | None = None,
) -> Source:
    """Returns documents drawn from several sources.

    Args:
        sources: the sources, or whatever `as_source` takes.
        weights: how often each is drawn, relative to the others; all alike by default.
        seed: of the draws.
        exhausted: what happens when a source ends: `stop` ends the mixture, `continue` draws from the others until all have ended, and
            `restart` begins that source again, until each has been read once.
        name: what to call it.

    Raises:
        ConfigError: the weights do not fit, or a source that is to be restarted can be read only once.
    """
    parts = [as_source(source) for source in sources]
    shares = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if not parts or len(shares) != len(parts) or not all(w > 0 for w in shares):
        raise ConfigError(
            f"Got {len(parts)} sources with the weights {shares}; a mixture needs sources, and a weight above 0 for each."
        )
    if exhausted not in ("stop", "restart", "continue"):
        raise ConfigError(f"Got exhausted={exhausted!r}; it is 'stop', 'restart' or 'continue'.")
    once = [part.name for part in parts if not part.repeatable]
    if exhausted == "restart" and once:
        raise ConfigError(f"{once[0]} can be read only once, so it cannot be restarted. Set exhausted='continue'.")
    total = sum(shares)
    named = name or "a mixture of " + ", ".join(f"{w / total:.3g} {p.name}" for w, p in zip(shares, parts, strict=True))
    reader = Mixture([part.reader for part in parts], shares, seed, exhausted)
    return Source(reader, named, _tokenized([part.tokenized for part in parts]))


def _tokenized(known: Sequence[Tokenized | None]) -> Tokenized | None:
    """Returns what holds for all parts; None only where all give text."""
    if all(t == known[0] for t in known):
        return known[0]
    tokenizers = {(t.tokenizer, t.fingerprint) for t in known if t is not None}
    if len({fingerprint for _, fingerprint in tokenizers if fingerprint is not None}) > 1:
        names = ", ".join(sorted(str(name) for name, _ in tokenizers))
        raise DataError(
            f"The parts of the mixture were tokenized by different tokenizers: {names}. Tokenize them alike."
        )
    tokenizer, fingerprint = next(((n, f) for n, f in tokenizers if f or n), (None, None))
    return Tokenized(tokenizer, fingerprint)
