"""Which examples explain a latent and which score the explanation: no token is in both."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from dictionary_learning.interpretation._records import Example, LatentContexts
from dictionary_learning.interpretation.explanations._prompts import Marked

_LEAST = 5
"""Windows of activity; a score of fewer says nothing."""


@runtime_checkable
class ContextsOfLatents(Protocol):
    """Where latents are active, and what tokens are as text."""

    def contexts(self, latent: int) -> LatentContexts:
        """Returns the examples of a latent."""
        ...

    def token_text(self, ids: Int[Tensor, "n"]) -> Sequence[str]:
        """Returns the text of each token by itself."""
        ...

    def window_text(self, ids: Int[Tensor, "window"]) -> Sequence[str]:
        """Returns the text of each token of a window: "" where a later one ends its character."""
        ...


class Window(NamedTuple):
    """An example as text."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    def scaled(self, maximum: float) -> Marked:
        """Returns the text with activations as whole numbers up to 10, which is `maximum`."""
        # as Bills et al. 2023 show them, but rounded up: what is active is marked
        top = 10
        shares = (min(max(a, 0.0) / maximum, 1.0) if maximum > 0 else 0.0 for a in self.activations)
        return Marked(self.tokens, tuple(min(int(share * top) + (share * top % 1 > 0), top) for share in shares))

    def marked(self, places: Iterable[int]) -> Marked:
        """Returns the text with marks at some places."""
        chosen = set(places)
        return Marked(self.tokens, tuple(int(place in chosen) for place in range(len(self.tokens))))


class Division(NamedTuple):
    """A latent's examples, divided."""

    shown: list[Window]
    """Those that explain, the most active first."""
    contrast: list[Window]
    """Quiet ones, shown with them."""
    active: list[list[Window]]
    """Those that score, of each quantile."""
    quiet: list[Window]
    """As many quiet ones."""
    maximum: float
    """The largest activation in what is shown."""


def divide(
    contexts: LatentContexts,
    text: Callable[[Tensor], Sequence[str]],
    chance: random.Random,
    *,
    n_shown: int,
    n_scored: int,
) -> Division:
    """Divides a latent's examples: every other one of the top and some of each quantile explain.

    Of the rest those score that share no token with what explains, nor with each other: as many of
    each quantile as there are, in turn, and as many quiet ones as active ones; none if these are
    fewer than 5.
    """
    strata = [_shuffled(stratum, chance) for stratum in contexts.quantiles if stratum]
    quiet = _shuffled(contexts.quiet, chance)
    n_contrast = min(len(quiet) // 4, n_shown // 4)
    halves = [stratum[: len(stratum) // 2] for stratum in strata]
    top = contexts.top[::2] if len(contexts.top) > 1 else contexts.top
    n_top = max(n_shown - sum(map(len, halves)), n_shown // 2)
    shown = _apart([*top[:n_top]], [])
    shown += _apart(_in_turn(halves, n_shown - len(shown)), shown)
    contrast = quiet[:n_contrast]
    rest = [list(reversed(stratum)) for stratum in strata] or [list(contexts.top[1::2])]
    taken = [*shown, *contrast]
    held: list[list[Example]] = [[] for _ in rest]
    # the same token may be in several quantiles' windows: whoever comes first in turn has it
    for place in range(max(map(len, rest), default=0)):
        for own, stratum in zip(held, rest, strict=True):
            if place < len(stratum) and _is_apart(stratum[place], taken):
                own.append(stratum[place])
                taken.append(stratum[place])
    calm = _apart(quiet[n_contrast:], taken)
    n = min(n_scored, sum(map(len, held)), len(calm))
    n = n if n >= min(_LEAST, n_scored) else 0
    kept = _in_turn(held, n)
    chosen = {id(example) for example in kept}
    shown = sorted(shown, key=_peak, reverse=True)
    return Division(
        _windows(shown, text),
        _windows(contrast, text),
        [_windows([example for example in own if id(example) in chosen], text) for own in held],
        _windows(calm[:n], text),
        max(map(_peak, shown), default=0.0),
    )


def _windows(examples: Iterable[Example], text: Callable[[Tensor], Sequence[str]]) -> list[Window]:
    return [_window(text(one.token_ids), one.activations.tolist()) for one in examples]


def _window(tokens: Sequence[str], activations: Sequence[float]) -> Window:
    """Returns a window in which the tokens of a character are one, as active as the most active."""
    pairs: list[tuple[str, float]] = []
    parts: list[float] = []
    for place, (token, activation) in enumerate(zip(tokens, activations, strict=True), 1):
        parts.append(activation)
        if token or place == len(tokens):
            pairs.append((token, max(parts)))
            parts = []
    return Window(tuple(token for token, _ in pairs), tuple(activation for _, activation in pairs))


def _peak(example: Example) -> float:
    return float(example.activations.max())


def _shuffled(examples: Sequence[Example], chance: random.Random) -> list[Example]:
    return chance.sample(list(examples), len(examples))


def _in_turn(strata: Sequence[Sequence[Example]], n: int) -> list[Example]:
    """Returns n examples, one of each stratum after another."""
    longest = max(map(len, strata), default=0)
    turns = [stratum[place] for place in range(longest) for stratum in strata if place < len(stratum)]
    return turns[: max(n, 0)]


def _apart(examples: Iterable[Example], taken: Sequence[Example]) -> list[Example]:
    """Returns the examples that share no token with those taken, nor with one before them."""
    kept: list[Example] = []
    for example in examples:
        if _is_apart(example, [*taken, *kept]):
            kept.append(example)
    return kept


def _is_apart(example: Example, others: Iterable[Example]) -> bool:
    start, stop = _span(example)
    for other in others:
        if other.document == example.document:
            first, last = _span(other)
            if start < last and first < stop:
                return False
    return True


def _span(example: Example) -> tuple[int, int]:
    start = example.position - example.peak
    return start, start + len(example.token_ids)
