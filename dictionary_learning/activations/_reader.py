"""From text and a model to rows of activations: one forward pass for all sites.

A `RowReader` takes contexts from a stream, runs the model over them, and returns the activations of
the tokens that count, with the origin of each row. Shuffle buffers and caches are built on it.
"""

import collections
import copy
import dataclasses
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._plain import counted
from dictionary_learning.activations._filters import TokenFilter, at_all_sites, norm_limit
from dictionary_learning.config import BaseConfig
from dictionary_learning.data import ContextSource, TokenBatch, TokenStream, as_context_source, as_source
from dictionary_learning.data._tokenizing import excluded_ids
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.models import load_model
from dictionary_learning.sites import Sides, Site

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Activations of tokens that count."""

    activations: dict[Site, Float[Tensor, "n dim"]]  # row i is the same token at every site
    token: Int[Tensor, "n"]  # its id; -1 where the model reads no tokens
    document: Int[Tensor, "n"]  # number of its document in the source; -1 where it is not known
    position: Int[Tensor, "n"]  # in its document; -1 where it is not known, and for inserted tokens
    n_contexts: int = 0  # that were read for them

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingConfig(BaseConfig):
    """Which rows are read: settings shared by `ActivationBuffer` and `write_cache`."""

    io: Sides = "out"
    """Side of submodules that name none: `in`, `out`, `in_and_out` for both, or `heads`."""
    ctx_len: int = 128
    """Tokens in a context."""
    remove_bos: bool = True
    """Whether to exclude BOS, the separators of documents, and the first token of each context."""
    add_special_tokens: bool = True
    """Whether BOS, or EOS if there is no BOS, is inserted between documents."""
    max_activation_norm_multiple: float | None = 10.0
    """Excludes tokens with a larger norm, in medians; None excludes none."""
    pack: bool = True
    """Whether documents are joined into full contexts; else each is one context, cut and padded."""
    seqpos_slice: tuple[int | None, ...] | None = None
    """Positions of a context to include, as (stop,), (start, stop) or (start, stop, step)."""
    text_column: str = "text"
    """Column that holds the text, if the data is a data set or JSON."""
    exclude_tokens: tuple[int | str, ...] = ()
    """Tokens to exclude too: ids, "eos", "bos", or a token as the vocabulary writes it."""


class RowSource(ABC):
    """Serves rows of activations and counts the tokens that it excludes."""

    sites: list[Site]
    name: str  # of the data
    norm_limits: dict[Site, float] | None = None  # the largest norm that is included
    n_tokens_read: int = 0  # without padding
    dropped: collections.Counter[str]  # how many of them each rule has excluded
    expected: int | None = None  # rows that will still be asked for; None where that is not known

    @abstractmethod
    def read(self, n_contexts: int) -> Rows | None:
        """Returns the rows of the next contexts, or None at the end of the data.

        There are fewer contexts where they are likely to hold all rows that are expected.
        """

    @abstractmethod
    def read_again(self, state: dict[str, Any], n_contexts: int) -> Rows | None:
        """Returns the rows of so many contexts after a state, and stays there."""

    @abstractmethod
    def look(self, n_contexts: int) -> None:
        """Finds the norm limits, in contexts whose rows the next `read` returns."""

    @abstractmethod
    def expect(self, n_rows: int | None) -> None:
        """Says how many rows will be asked for from now on; None where that is not known."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns everything that determines the next rows, as plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to the position of a state."""

    def release(self, state: dict[str, Any]) -> None:  # noqa: B027  (most data can be read again)
        """Says that no state before this one is loaded again."""

    def close(self) -> None:  # noqa: B027  (most sources have nothing to close)
        """Stops background threads."""

    @property
    def n_tokens_dropped(self) -> int:
        """Number of tokens that were read and excluded."""
        return sum(self.dropped.values())

    def describe_dropped(self) -> str:
        """Returns in words how many tokens were read, and how many each rule excluded."""
        told = {name: n for name, n in self.dropped.items() if n}
        rules = [f"by {name}" if len(told) == 1 else f"{n:,} by {name}" for name, n in told.items()]
        shown = f" ({', '.join(rules)})" if rules else ""
        return f"{counted(self.n_tokens_read, 'token')} read, {self.n_tokens_dropped:,} excluded{shown}"

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Sets counts and norm limits to those of a state."""
        limits = state["norm_limits"]
        self.norm_limits = {site: limits[str(site)] for site in self.sites} if limits else None
        self.n_tokens_read, self.dropped = state["n_tokens_read"], collections.Counter(state["dropped"])
        self.expected = state.get("expected")


class RowReader(RowSource):
    """Reads the activations of a `TracedModel` or `ModelSet` over a stream of contexts.

    The norm limits of the filter are computed from the first contexts and then fixed. With
    `repeat`, the stream restarts at its end. It may be empty where it is one of several shares.
    """

    def __init__(
        self,
        model: Any,
        stream: ContextSource,
        sites: Sequence[Site],
        filter: TokenFilter,
        *,
        repeat: bool = False,
        may_be_empty: bool = False,
    ):
        self.model, self.stream, self.sites, self.filter, self.repeat = model, stream, list(sites), filter, repeat
        self.name: str = stream.source.name
        self.dropped = collections.Counter()
        self._peeked: tuple[Any, dict[str, Any]] | None = None  # a batch and the stream's state before it
        self._seen: tuple[Rows | None, dict[str, Any]] | None = None  # rows of `look`, and the state before them
        self._rows_each = float(stream.ctx_len)  # rows of a context, in the last read
        self._may_be_empty = may_be_empty

    def read(self, n_contexts: int) -> Rows | None:
        if self._seen is not None:
            (rows, _), self._seen = self._seen, None
            return rows
        if self.expected is not None:
            n_contexts = max(1, min(n_contexts, math.ceil(self.expected / self._rows_each)))
        batch = self._take(n_contexts)
        if batch is None:
            self._check_not_empty()
            if not self.repeat or not self.n_tokens_read:
                return None
            logger.info("%s has ended after %s and restarts.", self.name, counted(self.n_tokens_read, "token"))
            self.stream.restart()
            batch = self.stream.take(n_contexts)
            if batch is None:
                return None
        inputs, attention_mask = batch
        activations = self.model.capture(inputs, attention_mask, self.sites)  # (batch, ctx, dim) each
        shape = next(iter(activations.values())).shape[:2]
        self._check_positions(shape[1])
        tokens = _as_tokens(inputs, attention_mask, shape)
        mask = self.filter.token_mask(tokens)  # (batch, ctx)
        self.n_tokens_read += int(tokens.attention_mask.sum())
        self.dropped.update(self.filter.counts(tokens))
        unknown = torch.full(tuple(shape), -1)
        origin = (tokens.input_ids, getattr(batch, "document", None), getattr(batch, "position", None))
        origin = [(unknown if part is None else part.cpu())[mask] for part in origin]  # (n,) each
        rows = self._within_limits({site: x[mask.to(x.device)] for site, x in activations.items()}, origin)
        self._rows_each = rows.n / shape[0] or self._rows_each
        if self.expected is not None:
            self.expected -= rows.n
        return rows._replace(n_contexts=shape[0])

    def read_again(self, state: dict[str, Any], n_contexts: int) -> Rows | None:
        self.load_state_dict({**state, "expected": None})
        return self.read(n_contexts)

    def look(self, n_contexts: int) -> None:
        if self._seen is None:
            before = copy.deepcopy(self.state_dict())
            self._seen = self.read(n_contexts), before

    def expect(self, n_rows: int | None) -> None:
        held = 0 if self._seen is None or self._seen[0] is None else self._seen[0].n
        self.expected = None if n_rows is None else n_rows - held

    def share(self, number: int, of: int) -> "RowReader":
        """Returns a reader of one of `of` shares of the documents, which may hold no text.

        Raises:
            ConfigError: Contexts come from a stream that cannot be divided.
            DataError: The text was read from already.
        """
        part = share_of(self.stream, number, of)
        return RowReader(self.model, part, self.sites, self.filter, repeat=self.repeat, may_be_empty=True)

    def peek(self, n_contexts: int) -> Any:
        """Returns the next inputs without consuming them; the next `read` must be for as many."""
        if self._peeked is None:
            state = copy.deepcopy(self.stream.state_dict())
            self._peeked = self.stream.take(n_contexts), state
        return self._peeked[0]

    def state_dict(self) -> dict[str, Any]:
        if self._seen is not None:
            return {**self._seen[1], "norm_limits": by_name(self.norm_limits)}
        return {
            "stream": self.stream.state_dict() if self._peeked is None else self._peeked[1],
            "norm_limits": by_name(self.norm_limits),
            "n_tokens_read": self.n_tokens_read,
            "dropped": dict(self.dropped),
            "expected": self.expected,
            "rows_each": self._rows_each,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._peeked = self._seen = None
        self._rows_each = state.get("rows_each", float(self.stream.ctx_len))
        self.stream.load_state_dict(state["stream"])
        self.load_counts(state)

    def release(self, state: dict[str, Any]) -> None:
        stream: Any = self.stream
        if hasattr(stream, "release"):  # streams of users may lack it
            stream.release(state["stream"])

    def _take(self, n_contexts: int) -> Any:
        if self._peeked is None:
            return self.stream.take(n_contexts)
        (batch, _), self._peeked = self._peeked, None
        return batch

    def _within_limits(self, activations: dict[Site, Tensor], origin: list[Tensor]) -> Rows:
        """Excludes rows whose norm is not finite or above limits, which the first call finds."""
        norms = {site: x.float().norm(dim=-1) for site, x in activations.items()}  # (n,) each
        finite = at_all_sites([norm.isfinite() for norm in norms.values()])  # (n,)
        inside, multiple = finite, self.filter.max_norm_multiple
        if multiple is not None and len(finite):
            if self.norm_limits is None:
                self.norm_limits = {site: norm_limit(norm, multiple, site) for site, norm in norms.items()}
            inside = finite & at_all_sites([norm <= self.norm_limits[site] for site, norm in norms.items()])
        n = len(finite)
        n_finite, n_inside = map(int, torch.stack([finite, inside]).sum(1).cpu())  # one transfer from the device
        self.dropped.update({"not finite": n - n_finite} if n > n_finite else {})
        if multiple is not None:
            self.dropped["norm"] += n_finite - n_inside
        if n > n_finite and self.n_tokens_dropped == self.n_tokens_read:
            raise DataError(
                f"{self.name} has no finite activation that counts so far: {self.describe_dropped()}. Check the site "
                "and the model's dtype: float16 overflows in many models."
            )
        if n_inside < n:
            activations = {site: x[inside.to(x.device)] for site, x in activations.items()}
            origin = [part[inside.cpu()] for part in origin]
        token, document, position = origin
        return Rows(activations, token, document, position)

    def _check_positions(self, n_positions: int) -> None:
        if n_positions > self.stream.ctx_len:
            raise DataError(
                f"An example of {self.name} has {n_positions} positions at '{self.sites[0]}', and ctx_len is "
                f"{self.stream.ctx_len}. Set ctx_len={n_positions} in the stream, and give all images one size."
            )

    def _check_not_empty(self) -> None:
        if self._may_be_empty:
            return
        if not self.n_tokens_read:
            raise DataError(f"{self.name} holds no text. At least one document must not be empty.")
        if self.n_tokens_dropped == self.n_tokens_read:
            raise DataError(
                f"{self.name} holds no token that counts ({self.describe_dropped()}): left out are "
                f"{self.filter.describe()}. Give more text, or exclude less."
            )


def row_reader(data: Any, model: Any, submodule: Any, config: ReadingConfig, *, repeat: bool = False) -> RowReader:
    """Returns a reader of a model's activations; arguments are those of `ActivationBuffer`."""
    options = {name: getattr(config, name) for name in ("ctx_len", "pack", "add_special_tokens", "text_column")}
    if isinstance(data, (str, os.PathLike)):  # which may be missing: before the model is loaded
        data = as_source(data, text_column=options.pop("text_column"))
    traced = load_model(model)
    end_of_data = "repeat" if repeat else "stop"
    stream = as_context_source(data, traced.tokenizer, model=traced, end_of_data=end_of_data, **options)
    rule = TokenFilter(
        exclude_ids=ids_to_exclude(stream, config.remove_bos, config.exclude_tokens),
        # an example, such as an image, has no BOS
        exclude_first=config.remove_bos and isinstance(stream, TokenStream),
        seqpos_slice=config.seqpos_slice,
        max_norm_multiple=config.max_activation_norm_multiple,
    )
    rule.check_context(stream.ctx_len)
    return RowReader(traced, stream, traced.sites(submodule, config.io), rule, repeat=repeat)


def share_of(stream: Any, number: int, of: int) -> ContextSource:
    """Returns one of `of` shares of a stream of contexts.

    Raises:
        ConfigError: The stream cannot be divided.
        DataError: It was read from already.
    """
    if not hasattr(stream, "share"):
        raise ConfigError(f"A {type(stream).__name__} cannot be divided among ranks. Give text, or start one process.")
    return stream.share(number, of)


def ids_to_exclude(stream: Any, remove_bos: bool, tokens: Sequence[int | str]) -> tuple[int, ...]:
    """Returns the ids that count nowhere: special ones, and those that are asked for."""
    n_known = getattr(stream, "vocab_size", None) if tokens else None  # it is slow to find
    more = excluded_ids(getattr(stream, "tokenizer", None), tokens, n_known)
    return tuple(dict.fromkeys([*(stream.special_ids if remove_bos else ()), *more]))


def by_name(limits: Mapping[Site, float] | None) -> dict[str, float]:
    """Returns values of sites with the sites' names as keys, for plain data."""
    return {str(site): limit for site, limit in (limits or {}).items()}


def _as_tokens(inputs: Any, attention_mask: Tensor | None, shape: torch.Size) -> TokenBatch:
    """Returns ids and mask on the CPU; ids are -1 if the model reads no tokens."""
    ids = inputs.cpu() if isinstance(inputs, Tensor) and inputs.shape == shape else torch.full(tuple(shape), -1)
    mask = torch.ones(tuple(shape), dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    return TokenBatch(ids, mask)
