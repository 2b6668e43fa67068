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

from dictionary_learning.activations.mixing import expected_partners
from dictionary_learning.activations.reader import Rows, by_name
from dictionary_learning.activations.reading import ahead, row_reader
from dictionary_learning.activations.source import ActivationBatch
from dictionary_learning.activations.storage import RowStorage, storage_dtype
from dictionary_learning.config import coerce
from dictionary_learning.data import TokenBatch, check_end_of_data
from dictionary_learning.errors import ConfigError, DataExhaustedError
from dictionary_learning.hardware import check_memory
from dictionary_learning.sites import Sides, Site

logger = logging.getLogger(__name__)


class ActivationBuffer:
    """Serves the activations of a model at one or several sites, shuffled; every token that counts exactly once.

    Over one site it yields tensors (out_batch_size, activation_dim), over several an `ActivationBatch`, and with
    `io="in_and_out"` over one submodule tensors (out_batch_size, 2, activation_dim), where both sides are equally wide.

    Args:
        data: the text: an iterator or list of strings, a file, a data set or the name of one (see `as_text_source`); or a stream
            of contexts, which then decides on `ctx_len`, `pack` and special tokens.
        model: the language model, or its name (see `load_model`).
        submodule: a submodule, a site (`"model.layers.10:out"`), a pattern (`"model.layers.[0-3].mlp"`), or a list.
        d_submodule: the width, if you want it checked; it is found by tracing.
        io: the side of submodules that are given without one: `in`, `out`, `in_and_out` for both, or `heads`.
        n_ctxs: how many contexts the buffer holds.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts in one forward pass of the model; at most half of those that the buffer holds.
        out_batch_size: tokens in a batch served.
        device: where the rows are kept; by default where the model is.
        remove_bos: leaves out BOS, the separators of documents and the first token of each context.
        add_special_tokens: whether BOS, or EOS where there is no BOS, is put between documents.
        max_activation_norm_multiple: leaves out tokens with a norm above this multiple of the median at any site, found on the
            first forward pass; None keeps them.
        pack: full contexts of joined documents; else each document is one context, cut and padded.
        end_of_data: `stop` ends the iteration after the last row, `repeat` begins the text again, `error` raises.
        seed: of the shuffle.
        dtype: of the rows kept; by default the model's. "int8" halves what 16 bits take (see `RowStorage`).
        seqpos_slice: the positions of a context that count, as (stop,), (start, stop) or (start, stop, step); the model reads all.
        prefetch: forward passes made ahead in a thread, while dictionaries step; by default 1 where the model is on a GPU, else 0.
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
        io: Sides = "out",
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
        dtype: torch.dtype | str | None = None,
        seqpos_slice: tuple[int | None, ...] | None = None,
        prefetch: int | None = None,
        text_column: str = "text",
    ):
        check_end_of_data(end_of_data)
        rows = row_reader(
            data,
            model,
            submodule,
            io=io,
            ctx_len=_positive("ctx_len", ctx_len),
            remove_bos=remove_bos,
            add_special_tokens=add_special_tokens,
            max_activation_norm_multiple=max_activation_norm_multiple,
            pack=pack,
            seqpos_slice=seqpos_slice,
            text_column=text_column,
            repeat=end_of_data == "repeat",
        )
        self.model, self.tokens, self.sites, self.filter = rows.model, rows.stream, rows.sites, rows.filter
        self.io, self.end_of_data, self.seed = io, end_of_data, seed
        self.n_ctxs = _positive("n_ctxs", n_ctxs)
        self.ctx_len = _positive("ctx_len", self.tokens.ctx_len)
        self.refresh_batch_size = min(_positive("refresh_batch_size", refresh_batch_size), max(self.n_ctxs // 2, 1))
        self.out_batch_size = _positive("out_batch_size", out_batch_size)
        self.activation_buffer_size = self.n_ctxs * self.ctx_len
        if self.out_batch_size > self.activation_buffer_size:
            raise ConfigError(
                f"A batch of out_batch_size={out_batch_size} tokens is larger than the whole buffer of n_ctxs={n_ctxs} contexts of "
                f"ctx_len={self.ctx_len} tokens ({self.activation_buffer_size}). Raise n_ctxs, or lower out_batch_size."
            )
        self.widths = self.model.widths(self.sites)
        self._pair = io == "in_and_out" and len(self.sites) == 2 and len(set(self.widths.values())) == 1
        if d_submodule is not None and set(self.widths.values()) != {d_submodule}:
            found = ", ".join(f"{site}: {width}" for site, width in self.widths.items())
            raise ConfigError(
                f"Got d_submodule={d_submodule}, but the widths are {found}. Leave d_submodule out: it is found."
            )
        self.device = torch.device(device) if device is not None else self.model.device
        self.dtype = storage_dtype(dtype or self.model.dtype)
        check_memory(
            self.n_bytes,
            self.device,
            f"A buffer of n_ctxs={self.n_ctxs} contexts",
            "Lower n_ctxs, or set dtype='int8'.",
        )
        self.reader = ahead(rows, self.refresh_batch_size, prefetch)
        self._storage: dict[Site, RowStorage] | None = None
        self._document = torch.full((self.activation_buffer_size,), -1)  # of each slot's row
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
                    f"{self.reader.name} ended after {self.n_tokens_read} tokens. Give more text, lower the number of steps, "
                    "or set end_of_data to 'stop' or 'repeat'."
                )
            raise StopIteration
        slots = self._order[self._cursor : self._cursor + self.out_batch_size]
        self._cursor += len(slots)
        assert self._storage is not None
        batch = {site: storage.read(slots) for site, storage in self._storage.items()}
        if self._pair:
            return torch.stack([batch[site] for site in self.sites], dim=1)
        return batch[self.sites[0]] if len(self.sites) == 1 else batch

    @property
    def n_bytes(self) -> int:
        """What its rows take at all sites."""
        return self.activation_buffer_size * sum(self.widths.values()) * self.dtype.itemsize

    @property
    def n_rows(self) -> int:
        """How many rows are held that were not served yet."""
        return len(self._order) - self._cursor

    @property
    def n_tokens_read(self) -> int:
        """Tokens given to the model so far, padding left out."""
        return self.reader.n_tokens_read

    @property
    def n_tokens_dropped(self) -> int:
        """Those of them that the filter left out."""
        return self.reader.n_tokens_dropped

    @property
    def norm_limits(self) -> dict[Site, float] | None:
        """The largest norm that counts at each site, once it was found."""
        return self.reader.norm_limits

    def refresh(self) -> None:
        """Runs the model over more text until the free slots are full, and draws a new order."""
        is_first = self._storage is None
        if self._storage is None:
            self._storage = self._allocate()
        free = torch.cat([self._order[: self._cursor], self._spare])
        n_filled = 0
        while len(free) - n_filled >= self.refresh_batch_size * self.ctx_len:
            rows = self.reader.read(self.refresh_batch_size)
            if rows is None:
                self._ended = True
                break
            self._put(rows, free[n_filled : n_filled + rows.n])
            n_filled += rows.n
        held = torch.cat([self._order[self._cursor :], free[:n_filled]])
        self._order = held[torch.randperm(len(held), generator=self._generator).to(self.device)]
        self._spare = free[n_filled:]
        self._cursor = 0
        if is_first:
            logger.info(
                "%s. A row meets %.1f others of its document in a batch of %d, on average.",
                self.reader.describe_dropped(),
                self.same_document_partners(),
                self.out_batch_size,
            )

    def same_document_partners(self) -> float:
        """Returns how many other rows of its document a row meets in a batch, on average (see `expected_partners`)."""
        held = self._document[self._order[self._cursor :].cpu()]
        return expected_partners(held, min(self.out_batch_size, max(self.n_rows, 1)))

    def _put(self, rows: Rows, slots: Tensor) -> None:
        assert self._storage is not None
        for site, storage in self._storage.items():
            storage.write(slots, rows.activations[site])
        self._document[slots.cpu()] = rows.document

    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, without taking them: to estimate scales and starting points."""
        if self.n_rows < min(n, self.activation_buffer_size // 2) and not self._ended:
            self.refresh()
        slots = self._order[self._cursor : self._cursor + n]
        assert self._storage is not None
        return {site: storage.read(slots) for site, storage in self._storage.items()}

    def tokenized_batch(self, batch_size: int | None = None) -> TokenBatch:
        """Takes the next contexts of the text, as they are fed to the model.

        Raises:
            DataExhaustedError: the text has ended.
        """
        self.reader.close()  # a thread that reads ahead would take from the same text at the same time
        batch = self.tokens.take(batch_size or self.refresh_batch_size)
        if batch is None:
            raise DataExhaustedError(f"{self.reader.name} has ended. Give more text.")
        return batch

    @property
    def config(self) -> dict[str, Any]:
        """All that decides which rows are served, and in which order; kept with every dictionary trained on them."""
        return {
            "source": self.reader.name,
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
            "add_special_tokens": getattr(self.tokens, "add_special_tokens", False),
            "end_of_data": self.end_of_data,
            "seed": self.seed,
            "filter": {**self.filter.to_dict(), "norm_limits": by_name(self.norm_limits)},
            "dropped": {"read": self.n_tokens_read, **self.reader.dropped},
        }

    def close(self) -> None:
        """Gives the rows' memory back; the buffer fills again when it is next asked for a batch."""
        self.reader.close()
        if self._storage is not None:
            logger.info("%s: %s.", self.reader.name, self.reader.describe_dropped())
        self._storage = None
        self._spare = torch.arange(self.activation_buffer_size, device=self.device)
        self._order = self._order[:0]
        self._cursor = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next batches depend on: rows, order, shuffle, and position in the text."""
        return {
            "rows": {str(site): storage.tensors() for site, storage in (self._storage or {}).items()},
            "document": self._document,
            "order": self._order,
            "spare": self._spare,
            "cursor": self._cursor,
            "ended": self._ended,
            "generator": self._generator.get_state(),
            "reader": self.reader.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of a buffer built alike.

        Raises:
            ConfigError: the state is of other sites or of another size.
        """
        rows, sites = state["rows"], [str(site) for site in self.sites]
        if (rows and list(rows) != sites) or len(state["document"]) != self.activation_buffer_size:
            raise ConfigError(
                f"The state holds {len(state['document'])} rows for {', '.join(rows) or 'no site'}; this buffer has "
                f"{self.activation_buffer_size} for {', '.join(sites)}. Build it with the same arguments."
            )
        self._storage = self._allocate() if rows else None
        for site, storage in (self._storage or {}).items():
            storage.load(rows[str(site)])
        self._document = state["document"].clone()
        self._order, self._spare = state["order"].to(self.device), state["spare"].to(self.device)
        self._cursor, self._ended = state["cursor"], state["ended"]
        self._generator.set_state(state["generator"].cpu())
        self.reader.load_state_dict(state["reader"])

    def _allocate(self) -> dict[Site, RowStorage]:
        """Says what the buffer takes, before the first forward pass, and takes it."""
        size, width = self.activation_buffer_size, sum(self.widths.values())
        passing = self.refresh_batch_size * self.ctx_len * width * self.model.dtype.itemsize
        logger.info(
            "The buffer takes %.2f GB on %s: %d rows at %d sites, %s. A forward pass adds %.2f GB of activations on %s.",
            self.n_bytes / 1e9, self.device, size, len(self.sites), self.dtype, passing / 1e9, self.model.device,
        )  # fmt: skip
        return {site: RowStorage(size, w, self.dtype, self.device, self.model.dtype) for site, w in self.widths.items()}


def _positive(name: str, value: Any) -> int:
    try:
        whole = coerce(value, int)
    except TypeError:
        raise ConfigError(f"Got {name}={value!r}; it must be a whole number.") from None
    if whole < 1:
        raise ConfigError(f"Got {name}={value!r}; it must be at least 1.")
    return whole
