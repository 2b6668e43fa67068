"""Activations of a language model, shuffled, a batch at a time.

The buffer holds rows of activations in storage that is allocated once. `order` is a permutation of the slots that hold
rows not served yet; a batch is the next stretch of it. When fewer than half are left, the model runs over more text and its
activations are written into the slots already served; then the order is drawn anew. One order serves all sites, so row i
of a batch is the same token at each of them. A batch costs one gather: nothing of the size of the buffer is touched.
"""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.activations.filters import TokenFilter, norm_limits, within_limits
from dictionary_learning.activations.source import ActivationBatch
from dictionary_learning.config import coerce
from dictionary_learning.data import TokenBatch, TokenStream, as_text_source
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError
from dictionary_learning.models import load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


class ActivationBuffer:
    """Serves the activations of a model at one or several sites, shuffled; every token that counts exactly once.

    Over one site it yields tensors (out_batch_size, activation_dim), over several an `ActivationBatch`, and with
    `io="in_and_out"` over one submodule tensors (out_batch_size, 2, activation_dim), where both sides are equally wide.

    Args:
        data: the text: an iterator or list of strings, a file, a data set or the name of one (see `as_text_source`).
        model: the language model, or its name (see `load_model`).
        submodule: a submodule, a site (`"model.layers.10:out"`), a pattern (`"model.layers.[0-3].mlp"`), or a list.
        d_submodule: the width, if you want it checked; it is found by tracing.
        io: the side of submodules that are given without one.
        n_ctxs: how many contexts the buffer holds.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts in one forward pass of the model.
        out_batch_size: tokens in a batch served.
        device: where the rows are kept; by default where the model is.
        remove_bos: leaves out BOS, the separators of documents and the first token of each context.
        add_special_tokens: whether BOS, or EOS where there is no BOS, is put between documents.
        max_activation_norm_multiple: leaves out tokens with a norm above this multiple of the median at any site, found on the
            first forward pass; None keeps them.
        pack: full contexts of joined documents; else each document is one context, cut and padded.
        end_of_data: `stop` ends the iteration after the last row, `repeat` begins the text again, `error` raises.
        seed: of the shuffle.
        dtype: of the rows kept; by default the model's.
        text_column: the column that holds the text, where data is a data set or JSON.

    Raises:
        SiteError: a submodule is not in the model.
        ConfigError: an argument cannot be used.
        DataExhaustedError: the data ended, under `end_of_data="error"`.
    """

    def __init__(
        self,
        data: Any,
        model: Any,
        submodule: Any,
        d_submodule: int | None = None,
        io: Literal["in", "out", "in_and_out"] = "out",
        n_ctxs: int | float = 30_000,
        ctx_len: int = 128,
        refresh_batch_size: int = 512,
        out_batch_size: int = 8192,
        device: torch.device | str | None = None,
        remove_bos: bool = True,
        add_special_tokens: bool = True,
        max_activation_norm_multiple: float | None = 10.0,
        *,
        pack: bool = True,
        end_of_data: Literal["stop", "repeat", "error"] = "stop",
        seed: int = 0,
        dtype: torch.dtype | None = None,
        text_column: str = "text",
    ):
        if io not in ("in", "out", "in_and_out"):
            raise ConfigError(f"Got io={io!r}; it is 'in', 'out' or 'in_and_out'.")
        if end_of_data not in ("stop", "repeat", "error"):
            raise ConfigError(f"Got end_of_data={end_of_data!r}; it is 'stop', 'repeat' or 'error'.")
        self.n_ctxs = _positive("n_ctxs", n_ctxs)
        self.ctx_len = _positive("ctx_len", ctx_len)
        self.refresh_batch_size = min(_positive("refresh_batch_size", refresh_batch_size), self.n_ctxs)
        self.out_batch_size = _positive("out_batch_size", out_batch_size)
        self.activation_buffer_size = self.n_ctxs * self.ctx_len
        if self.out_batch_size > self.activation_buffer_size:
            raise ConfigError(
                f"A batch of out_batch_size={out_batch_size} tokens is larger than the whole buffer of n_ctxs={n_ctxs} contexts of "
                f"ctx_len={ctx_len} tokens ({self.activation_buffer_size}). Raise n_ctxs, or lower out_batch_size."
            )
        self.model = load_model(model)
        self.io, self.end_of_data, self.seed = io, end_of_data, seed
        if io == "in_and_out":
            self.sites = [
                s for path in self.model.sites(submodule) for s in (Site(path.path, "in"), Site(path.path, "out"))
            ]
        else:
            self.sites = self.model.sites(submodule, io)
        self.widths = self.model.widths(self.sites)
        self._pair = io == "in_and_out" and len(self.sites) == 2 and len(set(self.widths.values())) == 1
        if d_submodule is not None and set(self.widths.values()) != {d_submodule}:
            found = ", ".join(f"{site}: {width}" for site, width in self.widths.items())
            raise ConfigError(
                f"Got d_submodule={d_submodule}, but the widths are {found}. Leave d_submodule out: it is found."
            )
        self.device = torch.device(device) if device is not None else self.model.device
        self.dtype = dtype or self.model.dtype

        source = as_text_source(data, text_column=text_column)
        self.tokens = TokenStream(
            source, self.model.tokenizer, ctx_len=self.ctx_len, pack=pack, add_special_tokens=add_special_tokens
        )
        self.filter = TokenFilter(
            exclude_ids=self.tokens.special_ids if remove_bos else (),
            exclude_first=remove_bos,
            max_norm_multiple=max_activation_norm_multiple,
        )
        self.norm_limits: dict[Site, float] | None = None
        self.n_tokens_read = 0
        """Tokens given to the model so far, padding left out."""
        self.n_tokens_dropped = 0
        """Those of them that the filter left out."""
        self._storage: dict[Site, Tensor] | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long, device=self.device)  # slots with rows, in the order served
        self._spare = torch.arange(self.activation_buffer_size, device=self.device)  # slots without
        self._cursor = 0
        self._ended = False

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]:
        return self

    def __next__(self) -> Tensor | ActivationBatch:
        least = max(self.activation_buffer_size // 2, self.out_batch_size)
        if self.n_rows < least and not self._ended:
            self.refresh()
        if self.n_rows == 0:
            if self.end_of_data == "error":
                raise DataExhaustedError(
                    f"{self.tokens.source.name} ended after {self.n_tokens_read} tokens. Give more text, lower the number of steps, "
                    "or set end_of_data to 'stop' or 'repeat'."
                )
            raise StopIteration
        slots = self._order[self._cursor : self._cursor + self.out_batch_size]
        self._cursor += len(slots)
        assert self._storage is not None
        batch = {site: rows.index_select(0, slots) for site, rows in self._storage.items()}
        if self._pair:
            return torch.stack([batch[site] for site in self.sites], dim=1)
        return batch[self.sites[0]] if len(self.sites) == 1 else batch

    @property
    def n_rows(self) -> int:
        """How many rows are held that were not served yet."""
        return len(self._order) - self._cursor

    def refresh(self) -> None:
        """Runs the model over more text until the free slots are full, and draws a new order."""
        if self._storage is None:
            self._storage = self._allocate()
        free = torch.cat([self._order[: self._cursor], self._spare])
        n_filled = 0
        while True:
            n_contexts = min(self.refresh_batch_size, (len(free) - n_filled) // self.ctx_len)
            # a forward pass over the few contexts that would still fit is not worth its cost
            if n_contexts == 0 or (n_filled and n_contexts < self.refresh_batch_size):
                break
            rows = self._next_rows(n_contexts)
            if rows is None:
                break
            n_new = len(rows[self.sites[0]])
            slots = free[n_filled : n_filled + n_new]
            for site, storage in self._storage.items():
                storage.index_copy_(0, slots, rows[site].to(storage.device, storage.dtype))
            n_filled += n_new
        held = torch.cat([self._order[self._cursor :], free[:n_filled]])
        self._order = held[torch.randperm(len(held), generator=self._generator).to(self.device)]
        self._spare = free[n_filled:]
        self._cursor = 0

    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, without taking them: to estimate scales and starting points."""
        if self.n_rows < min(n, self.activation_buffer_size // 2) and not self._ended:
            self.refresh()
        slots = self._order[self._cursor : self._cursor + n]
        assert self._storage is not None
        return {site: rows.index_select(0, slots) for site, rows in self._storage.items()}

    def tokenized_batch(self, batch_size: int | None = None) -> TokenBatch:
        """Takes the next contexts of the text, as they are fed to the model.

        Raises:
            DataExhaustedError: the text has ended.
        """
        batch = self.tokens.take(batch_size or self.refresh_batch_size)
        if batch is None:
            raise DataExhaustedError(f"{self.tokens.source.name} has ended. Give more text.")
        return batch

    @property
    def config(self) -> dict[str, Any]:
        """All that decides which rows are served, and in which order; kept with every dictionary trained on them."""
        limits = self.norm_limits or {}
        return {
            "source": self.tokens.source.name,
            "model": self.model.describe(),
            "sites": [str(site) for site in self.sites],
            "d_submodule": list(self.widths.values()) if len(self.sites) > 1 else self.widths[self.sites[0]],
            "io": self.io,
            "n_ctxs": self.n_ctxs,
            "ctx_len": self.ctx_len,
            "refresh_batch_size": self.refresh_batch_size,
            "out_batch_size": self.out_batch_size,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "pack": self.tokens.pack,
            "add_special_tokens": self.tokens.add_special_tokens,
            "end_of_data": self.end_of_data,
            "seed": self.seed,
            "filter": {**self.filter.to_dict(), "norm_limits": {str(s): limit for s, limit in limits.items()}},
        }

    def close(self) -> None:
        """Gives the rows' memory back; the buffer fills again when it is next asked for a batch."""
        self._storage = None
        self._spare = torch.arange(self.activation_buffer_size, device=self.device)
        self._order = self._order[:0]
        self._cursor = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next batches depend on: rows, order, shuffle, and position in the text."""
        return {
            "rows": {str(site): rows for site, rows in (self._storage or {}).items()},
            "order": self._order,
            "spare": self._spare,
            "cursor": self._cursor,
            "ended": self._ended,
            "generator": self._generator.get_state(),
            "tokens": self.tokens.state_dict(),
            "norm_limits": {str(site): limit for site, limit in self.norm_limits.items()} if self.norm_limits else None,
            "counts": [self.n_tokens_read, self.n_tokens_dropped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of a buffer built alike.

        Raises:
            ConfigError: the state is of other sites or of another size.
        """
        rows = state["rows"]
        shapes = {str(site): (self.activation_buffer_size, width) for site, width in self.widths.items()}
        if rows and {name: tuple(tensor.shape) for name, tensor in rows.items()} != shapes:
            raise ConfigError(
                f"The state holds rows for {sorted(rows)}; this buffer has {shapes}. Build it with the same arguments."
            )
        self._storage = {site: rows[str(site)].to(self.device).clone() for site in self.sites} if rows else None
        self._order, self._spare = state["order"].to(self.device), state["spare"].to(self.device)
        self._cursor, self._ended = state["cursor"], state["ended"]
        self._generator.set_state(state["generator"].cpu())
        self.tokens.load_state_dict(state["tokens"])
        limits = state["norm_limits"]
        self.norm_limits = {site: limits[str(site)] for site in self.sites} if limits else None
        self.n_tokens_read, self.n_tokens_dropped = state["counts"]

    def _allocate(self) -> dict[Site, Tensor]:
        n_bytes = self.activation_buffer_size * sum(self.widths.values()) * self.dtype.itemsize
        logger.info(
            "The buffer takes %.2f GB: %d rows at %d sites, %s.",
            n_bytes / 1e9,
            self.activation_buffer_size,
            len(self.sites),
            self.dtype,
        )
        size = self.activation_buffer_size
        return {
            site: torch.empty(size, width, dtype=self.dtype, device=self.device) for site, width in self.widths.items()
        }

    def _next_rows(self, n_contexts: int) -> dict[Site, Tensor] | None:
        """Returns the rows of the next contexts that count, or None at the end of the data."""
        tokens = self.tokens.take(n_contexts)
        if tokens is None and self.end_of_data == "repeat" and self.n_tokens_read:
            if self.n_tokens_dropped == self.n_tokens_read:
                raise DataError(
                    f"{self.tokens.source.name} holds no token that counts: left out are {self.filter.describe()}. Give more text."
                )
            logger.info("%s has ended after %d tokens and begins again.", self.tokens.source.name, self.n_tokens_read)
            self.tokens.restart()
            tokens = self.tokens.take(n_contexts)
        if tokens is None:
            self._ended = True
            if not self.n_tokens_read:
                raise DataError(
                    f"{self.tokens.source.name} holds no text. Give at least one document that is not empty."
                )
            return None
        activations = self.model.capture(*tokens, self.sites)
        mask = self.filter.token_mask(tokens)
        rows = {site: values[mask.to(values.device)] for site, values in activations.items()}
        if self.filter.max_norm_multiple is not None:
            self.norm_limits = self.norm_limits or norm_limits(rows, self.filter)
            assert self.norm_limits is not None
            inside = within_limits(rows, self.norm_limits)
            rows = {site: values[inside.to(values.device)] for site, values in rows.items()}
        n_read = int(tokens.attention_mask.sum())
        self.n_tokens_read += n_read
        self.n_tokens_dropped += n_read - len(rows[self.sites[0]])
        return rows


def _positive(name: str, value: Any) -> int:
    try:
        whole = coerce(value, int)
    except TypeError:
        raise ConfigError(f"Got {name}={value!r}; it must be a whole number.") from None
    if whole < 1:
        raise ConfigError(f"Got {name}={value!r}; it must be at least 1.")
    return whole
