"""What exports are told of a dictionary, and the same of one latent as plain data."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import (
    Example,
    Explanation,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)
from dictionary_learning.interpretation.explanations import ContextsOfLatents

_DIGITS = 6
"""Of numbers in files: those of a float32, nearly."""


@runtime_checkable
class StoredContexts(ContextsOfLatents, Protocol):
    """The contexts of a dictionary in a store, such as a `DictionaryContexts`."""

    name: str
    statistics: LatentStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentFacts:
    """What is known of a dictionary's latents; what is None is left out of the files."""

    contexts: ContextsOfLatents
    """Where each latent is active, such as a `DictionaryContexts`."""
    statistics: LatentStatistics
    effects: TokenEffects | None = None
    neighbors: Neighbors | None = None
    explanations: Mapping[int, Sequence[Explanation]] = dataclasses.field(default_factory=dict)
    """By latent."""
    directions: Float[Tensor, "dict_size dim"] | None = None
    """The decoder's rows."""
    name: str = "dictionary"
    site: str = ""
    """The site that it reads."""
    model: str = ""
    """The name of the language model; "" if it is not known."""
    data: str = ""
    """The name of the text."""

    def __post_init__(self) -> None:
        tensors = {
            "effects": None if self.effects is None else self.effects.promoted,
            "neighbors": None if self.neighbors is None else self.neighbors.latents,
            "directions": self.directions,
        }
        for name, tensor in tensors.items():
            if tensor is not None and len(tensor) != self.dict_size:
                raise ConfigError(
                    f"'{self.name}' has statistics of {self.dict_size} latents and {name} of {len(tensor)}. Give what "
                    "was computed of the same dictionary."
                )

    @property
    def dict_size(self) -> int:
        """Latents of the dictionary."""
        return len(self.statistics.density)

    @classmethod
    def of_store(cls, contexts: Any, **more: Any) -> "LatentFacts":
        """Returns what a store of contexts holds of a dictionary; `more` are further fields.

        Raises:
            ConfigError: It is no dictionary of a store.
        """
        if not isinstance(contexts, StoredContexts):
            raise ConfigError(f"Got a {type(contexts).__name__}; give a dictionary of a store: store['name'].")
        store: Any = getattr(contexts, "store", None)
        known: dict[str, Any] = {"name": contexts.name, "site": getattr(contexts, "site", "")}
        if store is not None:
            known |= {"model": str(store.model.get("name") or ""), "data": str(store.data.get("source") or "")}
        return cls(contexts=contexts, statistics=contexts.statistics, **{**known, **more})

    def chosen(self, latents: Sequence[int] | None) -> list[int]:
        """Returns the latents that are asked for, by default all.

        Raises:
            ConfigError: One is none of the dictionary's.
        """
        wanted = list(range(self.dict_size)) if latents is None else list(latents)
        wrong = next((one for one in wanted if not 0 <= one < self.dict_size), None)
        if wrong is not None or not wanted:
            raise ConfigError(
                f"Got latents={'[]' if wrong is None else wrong}; '{self.name}' has latents 0 to {self.dict_size - 1}. "
                "Give some of these."
            )
        return list(dict.fromkeys(wanted))


class Shown(NamedTuple):
    """An example as text: its tokens, the activation on each, and the place it was chosen for."""

    tokens: list[str]
    values: list[float]
    peak: int


class Group(NamedTuple):
    """Examples of one quantile, or the top ones."""

    examples: list[Shown]
    low: float
    high: float
    share: float | None
    """Of the tokens where the latent is active; None for the top ones."""


class Bars(NamedTuple):
    """A histogram: the middle of each bin, and what is in it."""

    values: list[float]
    heights: list[int]


class LatentPage(NamedTuple):
    """What is known of one latent, as plain data."""

    latent: int
    density: float
    mean: float
    maximum: float
    groups: list[Group]
    histogram: Bars
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    logits: Bars
    neighbors: list[tuple[int, float]]
    direction: list[float]
    aligned: list[tuple[int, float, float]]
    """The largest entries of the direction: place, value, share of the absolute sum."""
    explanations: list[Explanation]


def pages_of(facts: LatentFacts, latents: Sequence[int]) -> Iterator[LatentPage]:
    """Yields what is known of each latent."""
    return (page_of(facts, latent) for latent in latents)


def page_of(facts: LatentFacts, latent: int) -> LatentPage:
    """Returns what is known of a latent."""
    statistics, effects = facts.statistics, facts.effects
    found = facts.contexts.contexts(latent)
    end = statistics.maximum if statistics.upper is None else statistics.upper
    counts: list[int] = statistics.histogram[latent].tolist()
    top = float(end[latent])
    maximum = number(statistics.maximum[latent])
    groups = [Group([_shown(facts, one) for one in found.top], 0.0, maximum, None)] if found.top else []
    parts = [[_shown(facts, one) for one in examples] for examples in found.quantiles]
    edges = _between(quantile_edges(counts, top, len(parts), maximum), parts)
    for shown, high, low in zip(parts, edges, edges[1:], strict=False):
        groups.append(Group(shown, number(low), number(high), 1 / len(parts)))
    return LatentPage(
        latent,
        number(statistics.density[latent]),
        number(statistics.mean[latent]),
        maximum,
        groups,
        bars(counts, 0.0, top),
        [] if effects is None else _tokens(facts, effects.promoted[latent], effects.promoted_logits[latent]),
        [] if effects is None else _tokens(facts, effects.suppressed[latent], effects.suppressed_logits[latent]),
        Bars([], []) if effects is None else _logit_bars(effects, latent),
        _neighbors(facts.neighbors, latent),
        [] if facts.directions is None else [number(value) for value in facts.directions[latent].tolist()],
        [] if facts.directions is None else _aligned(facts.directions[latent]),
        list(facts.explanations.get(latent, ())),
    )


def number(value: Any) -> float:
    """Returns a number with as many digits as it has; 0 for what JSON cannot hold."""
    value = float(value)
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else 0.0


def bars(counts: Sequence[int], low: float, high: float) -> Bars:
    """Returns a histogram of bins of equal width."""
    width = (high - low) / max(len(counts), 1)
    return Bars([number(low + (n + 0.5) * width) for n in range(len(counts))], list(counts))


def quantile_edges(counts: Sequence[int], high: float, n: int, maximum: float) -> list[float]:
    """Returns the n + 1 values that cut what a histogram counts into n equal shares, from the top.

    The first is `maximum`, the last 0. Within a bin, values are taken to be spread evenly, so edges
    are exact to a bin.
    """
    total, width = sum(counts), high / max(len(counts), 1)
    edges, above, place = [maximum], 0, len(counts)
    for part in range(1, n):
        wanted = total * part / n
        while place > 0 and above + counts[place - 1] < wanted:
            place -= 1
            above += counts[place]
        inside = (wanted - above) / counts[place - 1] if place > 0 and counts[place - 1] else 0.0
        edges.append(min(max(place - inside, 0.0) * width, maximum))
    return [*edges, 0.0]


def _between(edges: Sequence[float], parts: Sequence[Sequence[Shown]]) -> list[float]:
    """Returns edges, which are exact to a bin, moved to where they divide the examples too."""
    peaks = [[one.values[one.peak] for one in part] for part in parts]
    moved = list(edges)
    for n in range(1, len(parts)):
        above, below = (list(itertools.chain(*some)) for some in (peaks[:n], peaks[n:]))
        moved[n] = min(max(moved[n], *below, 0.0), *above, edges[0])
    return moved


def _shown(facts: LatentFacts, example: Example) -> Shown:
    values = [number(value) for value in example.activations.tolist()]
    return Shown(list(facts.contexts.window_text(example.token_ids)), values, example.peak)


def _tokens(facts: LatentFacts, ids: Tensor, logits: Tensor) -> list[tuple[str, float]]:
    return [(text, number(value)) for text, value in zip(facts.contexts.token_text(ids), logits.tolist(), strict=True)]


def _logit_bars(effects: TokenEffects, latent: int) -> Bars:
    counts: list[int] = effects.histogram[latent].tolist()
    return bars(counts, float(effects.low[latent]), float(effects.high[latent]))


def _neighbors(neighbors: Neighbors | None, latent: int) -> list[tuple[int, float]]:
    if neighbors is None:
        return []
    pairs = zip(neighbors.latents[latent].tolist(), neighbors.similarities[latent].tolist(), strict=True)
    return [(int(other), number(similarity)) for other, similarity in pairs if other >= 0]


def _aligned(direction: Tensor) -> list[tuple[int, float, float]]:
    n_shown = 3
    row = direction.float()
    total = float(row.abs().sum()) or 1.0
    found: list[int] = torch.topk(row.abs(), min(n_shown, len(row))).indices.tolist()
    return [(place, number(row[place]), number(abs(float(row[place])) / total)) for place in found]
