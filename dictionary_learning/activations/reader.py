"""From contexts to rows of activations: one forward pass for all sites, and what it left out.

A `RowReader` is what a shuffle buffer and a cache on disk have in common. It knows nothing of either: it takes contexts from a
stream, runs the model over them, and returns the activations of the tokens that count, with where each of them comes from.
"""

import collections
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.activations.filters import TokenFilter, norm_limits, within_limits
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Activations of tokens that count."""

    activations: dict[Site, Float[Tensor, "n dim"]]
    """By site; row i is the same token at every site."""
    token: Int[Tensor, "n"]
    """The token's id; -1 where the model reads no tokens."""
    document: Int[Tensor, "n"]
    """The number of its document in the source; -1 where it is not known."""
    position: Int[Tensor, "n"]
    """Its place among the tokens of its document; -1 where it is not known, and where it was put in."""

    @property
    def n(self) -> int:
        """How many rows there are."""
        return len(self.token)


class _Positions(NamedTuple):
    """Positions that are no tokens, as a filter looks at them."""

    input_ids: Int[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]


class RowSource(ABC):
    """What gives rows of activations, and counts what it left out."""

    sites: list[Site]
    """Where activations are taken."""
    name: str
    """What the data is called."""
    norm_limits: dict[Site, float] | None = None
    """The largest norm that counts at each site."""
    n_tokens_read: int = 0
    """Tokens given to the model so far, padding left out."""
    dropped: collections.Counter[str]
    """Those of them that the filter left out, by the rule."""

    @abstractmethod
    def read(self, n_contexts: int) -> Rows | None:
        """Returns the rows of the next contexts that count, or None at the end of the data."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next rows depend on, as plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""

    def close(self) -> None:  # noqa: B027  (most have nothing to end)
        """Ends whatever runs beside."""

    @property
    def n_tokens_dropped(self) -> int:
        """Tokens that were read and left out."""
        return sum(self.dropped.values())

    def describe_dropped(self) -> str:
        """Returns in words how many tokens were read, and how many each rule left out."""
        rules = ", ".join(f"{name} {n:,}" for name, n in self.dropped.items() if n) or "none"
        return f"{self.n_tokens_read:,} tokens read, {self.n_tokens_dropped:,} left out ({rules})"

    def take_counts(self, state: Mapping[str, Any]) -> None:
        """Takes over the counts and limits of a state."""
        limits = state["norm_limits"]
        self.norm_limits = {site: limits[str(site)] for site in self.sites} if limits else None
        self.n_tokens_read, self.dropped = state["n_tokens_read"], collections.Counter(state["dropped"])


class RowReader(RowSource):
    """Reads rows of activations from a stream of contexts.

    Args:
        model: runs over the contexts: a `TracedModel`, or a `ModelSet`.
        stream: gives them: a `TokenStream`, or whatever has its methods.
        sites: where activations are taken.
        filter: which tokens count. Its norm limits are found on the first contexts that are read, and stay.
        repeat: whether the stream begins again when it has ended.
    """

    def __init__(self, model: Any, stream: Any, sites: Sequence[Site], filter: TokenFilter, *, repeat: bool = False):
        self.model, self.stream, self.sites, self.filter, self.repeat = model, stream, list(sites), filter, repeat
        self.name = stream.source.name
        self.dropped = collections.Counter()

    def read(self, n_contexts: int) -> Rows | None:
        """Returns the rows of the next contexts that count, or None at the end of the data.

        Raises:
            DataError: the data holds no text, or nothing that counts, and would be repeated for ever.
        """
        batch = self.stream.take(n_contexts)
        if batch is None and self.repeat and self.n_tokens_read:
            self._check_worth_repeating()
            logger.info("%s has ended after %d tokens and begins again.", self.name, self.n_tokens_read)
            self.stream.restart()
            batch = self.stream.take(n_contexts)
        if batch is None:
            if not self.n_tokens_read:
                raise DataError(f"{self.name} holds no text. Give at least one document that is not empty.")
            return None
        inputs, attention_mask = batch
        activations = self.model.capture(inputs, attention_mask, self.sites)
        shape = next(iter(activations.values())).shape[:2]
        tokens = _as_tokens(inputs, attention_mask, shape)
        mask = self.filter.token_mask(tokens)
        self.n_tokens_read += int(tokens.attention_mask.sum())
        self.dropped.update(self.filter.counts(tokens))
        unknown = torch.full(tuple(shape), -1)
        places = (tokens.input_ids, getattr(batch, "document", None), getattr(batch, "position", None))
        places = [(unknown if place is None else place.cpu())[mask] for place in places]
        return self._within_limits({site: x[mask.to(x.device)] for site, x in activations.items()}, places)

    def state_dict(self) -> dict[str, Any]:
        return {
            "stream": self.stream.state_dict(),
            "norm_limits": by_name(self.norm_limits),
            "n_tokens_read": self.n_tokens_read,
            "dropped": dict(self.dropped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self.take_counts(state)

    def _within_limits(self, activations: dict[Site, Tensor], places: list[Tensor]) -> Rows:
        """Returns the rows whose norms are within the limits, which are found if they are not known yet."""
        if self.filter.max_norm_multiple is not None and len(places[0]):
            self.norm_limits = self.norm_limits or norm_limits(activations, self.filter)
            assert self.norm_limits is not None
            inside = within_limits(activations, self.norm_limits)
            activations = {site: x[inside.to(x.device)] for site, x in activations.items()}
            on_host = inside.cpu()
            self.dropped["norm"] += int((~on_host).sum())
            places = [place[on_host] for place in places]
        return Rows(activations, *places)

    def _check_worth_repeating(self) -> None:
        if self.n_tokens_dropped == self.n_tokens_read:
            raise DataError(
                f"{self.name} holds no token that counts: left out are {self.filter.describe()}. Give more text."
            )


def by_name(limits: Mapping[Site, float] | None) -> dict[str, float]:
    """Returns what is known of sites with their names as keys, as plain data has them."""
    return {str(site): limit for site, limit in (limits or {}).items()}


def _as_tokens(inputs: Any, attention_mask: Tensor | None, shape: torch.Size) -> _Positions:
    """Returns the ids and the mask on the host; -1 for ids where the model reads no tokens, and True where there is no padding."""
    ids = inputs.cpu() if isinstance(inputs, Tensor) and inputs.shape == shape else torch.full(tuple(shape), -1)
    mask = torch.ones(tuple(shape), dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    return _Positions(ids, mask)
