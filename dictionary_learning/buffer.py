"""Shuffled activations of a language model, one batch at a time: the model, its text, and rows."""

import copy
import math
import numbers
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dictionary_learning._border import checked, short
from dictionary_learning._hardware import as_device, check_memory
from dictionary_learning._in_turn import InTurn, in_turn
from dictionary_learning._lazy import lazy_names
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.activations._prefetch import ahead
from dictionary_learning.activations._reader import ReadingConfig, RowReader, by_name, row_reader, share_of
from dictionary_learning.activations._shuffled_rows import ShuffledRows, Slots
from dictionary_learning.activations._storage import storage_dtype
from dictionary_learning.activations._stream import ActivationBatch, check_width
from dictionary_learning.data import EndOfData, TokenBatch
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError
from dictionary_learning.sites import Sides, Site

_SHARE_STRIDE = 1_000_003
"""Distance of the seeds of shares: those of neighboring seeds of runs do not meet."""


_OLD: dict[str, str] = dict.fromkeys(
    ("HeadActivationBuffer", "NNsightActivationBuffer"), "dictionary_learning.compat._gone"
)
# `compat` imports this module, so its names are looked up when they are used
__getattr__, __dir__ = lazy_names(__name__, _OLD)


class ActivationBuffer(InTurn, IterableDataset["Tensor | ActivationBatch"]):
    """Serves the activations of a model at one or several sites, shuffled; each token exactly once.

    Several threads may read one buffer; each batch goes to one of them.

    One site yields tensors (out_batch_size, activation_dim), several an `ActivationBatch`. With
    `io="in_and_out"` over one submodule whose sides are equally wide, tensors are
    (out_batch_size, 2, activation_dim).

    Args:
        data: the text: strings, a file, a data set or its name (see `as_source`); or a stream of
            contexts, which has its own `ctx_len`, `pack` and special tokens.
        model: the language model, or its name (see `load_model`).
        submodule: a submodule, a site (`"model.layers.10:out"`), a pattern
            (`"model.layers.[0-3].mlp"`), or a list of these.
        d_submodule: the width of the sites, to be checked; it is found by tracing.
        io: side of submodules that name none: `in`, `out`, `in_and_out` for both, or `heads`.
        n_ctxs: number of contexts in the buffer.
        refresh_batch_size: contexts in one forward pass of the model; at most half the buffer.
        out_batch_size: tokens in a batch.
        device: device of the rows; by default the model's.
        remove_bos: excludes BOS, the separators of documents and the first token of each context.
        add_special_tokens: inserts BOS, or EOS if there is no BOS, between documents.
        max_activation_norm_multiple: excludes tokens whose norm at any site is above this multiple
            of the median over the first forward pass; None excludes none.
        pack: joins documents into full contexts; else each is one context, cut and padded.
        end_of_data: `stop` ends after the last row, `repeat` restarts the text, `error` raises.
        seed: seed of the shuffle.
        dtype: type of the stored rows, by default the model's; see `RowStorage` for "int8".
        seqpos_slice: positions of a context to include, as (stop,), (start, stop) or
            (start, stop, step); the model reads all.
        prefetch: forward passes that a thread makes ahead; by default 1 on a GPU, else 0.
        retrace: whether a checkpoint names the rows that wait in the buffer instead of holding
            them. It is small then, and the model reads their contexts again when a run resumes.
        text_column: column that holds the text, if the data is a data set or JSON.
        exclude_tokens: tokens to exclude too: ids, "eos", "bos", or as the vocabulary writes them.

    Raises:
        SiteError: a submodule is not in the model.
        ConfigError: an argument cannot be used.
        DataError: the text holds no token that counts.
        DataExhaustedError: the data ended, with `end_of_data="error"`.
    """

    @checked()
    def __init__(
        self,
        data: TextLike,
        model: ModelLike,
        submodule: SubmodulesLike,
        d_submodule: int | None = None,
        io: Sides = "out",
        n_ctxs: int = 30_000,
        ctx_len: int = 128,
        refresh_batch_size: int = 512,
        out_batch_size: int = 8192,
        device: torch.device | str | None = None,
        remove_bos: bool = True,
        add_special_tokens: bool = True,
        max_activation_norm_multiple: float | None = 10.0,
        *,
        pack: bool = True,
        end_of_data: EndOfData = "stop",
        seed: int = 0,
        dtype: torch.dtype | str | None = None,
        seqpos_slice: tuple[int | None, ...] | None = None,
        prefetch: int | None = None,
        text_column: str = "text",
        retrace: bool = False,
        exclude_tokens: Sequence[int | str] = (),
    ):
        config = ReadingConfig(
            io=io,
            ctx_len=ctx_len,
            remove_bos=remove_bos,
            add_special_tokens=add_special_tokens,
            max_activation_norm_multiple=max_activation_norm_multiple,
            pack=pack,
            seqpos_slice=seqpos_slice,
            text_column=text_column,
            exclude_tokens=tuple(exclude_tokens),
        )
        self.io, self.end_of_data, self.seed, self.n_ctxs = io, end_of_data, seed, n_ctxs
        self.ctx_len: int = getattr(data, "ctx_len", ctx_len)  # a stream has its own
        # at most half the buffer, so that a refill always has room for a forward pass
        self.refresh_batch_size = min(refresh_batch_size, max(n_ctxs // 2, 1))
        self.out_batch_size, self.activation_buffer_size = out_batch_size, n_ctxs * self.ctx_len
        if out_batch_size > self.activation_buffer_size:
            raise ConfigError(
                f"A batch of out_batch_size={out_batch_size} tokens is larger than the whole buffer of n_ctxs={n_ctxs} "
                f"contexts of ctx_len={self.ctx_len} tokens. Raise n_ctxs, or lower out_batch_size."
            )
        dtype = None if dtype is None else storage_dtype(dtype)
        rows = row_reader(data, model, submodule, config, repeat=end_of_data == "repeat")
        self.model, self.tokens, self.sites, self.filter = rows.model, rows.stream, rows.sites, rows.filter
        self.widths: dict[Site, int] = self.model.widths(self.sites)
        check_width(d_submodule, self.widths)
        self._pair = io == "in_and_out" and len(self.sites) == 2 and len(set(self.widths.values())) == 1
        self.device = as_device(device) if device is not None else self.model.device
        self.dtype = storage_dtype(dtype or self.model.dtype)
        at_once = self.refresh_batch_size * self.ctx_len
        shape = (self.activation_buffer_size, self.widths, self.dtype, self.device)
        slots = Slots(*shape, self.model.dtype, self.model.device, self.refresh_batch_size, at_once, out_batch_size)
        what = f"A buffer of n_ctxs={self.n_ctxs} contexts"
        check_memory(slots.n_bytes, self.device, what, "Lower n_ctxs, or set dtype='int8'.")
        self.prefetch, self._repeats, self._retrace = prefetch, end_of_data == "repeat", retrace
        self.reader = ahead(rows, self.refresh_batch_size, prefetch)
        self._rows = ShuffledRows(self.reader, slots, seed=self.seed, retrace=retrace)

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]:
        return self

    @in_turn
    @usual_state()
    def __next__(self) -> Tensor | ActivationBatch:
        if (worker := get_worker_info()) is not None and worker.num_workers > 1:
            raise ConfigError(
                f"Each of {worker.num_workers} workers would serve the same rows of an ActivationBuffer. Set "
                "num_workers=0 and prefetch=1, or write an ActivationCache, which workers share."
            )
        if self._rows.prepare(self.out_batch_size):
            return self._rows.serve(self._served)  # an interrupt after it would lose the batch
        if self.end_of_data == "error":
            raise DataExhaustedError(
                f"{self.reader.name} ended after {self.n_tokens_read} tokens. Give more text, lower the number of "
                "steps, or set end_of_data to 'stop' or 'repeat'."
            )
        raise StopIteration

    def _served(self, batch: ActivationBatch) -> Tensor | ActivationBatch:
        if self._pair:
            return torch.stack([batch[site] for site in self.sites], dim=1)  # (out_batch_size, 2, activation_dim)
        return batch[self.sites[0]] if len(self.sites) == 1 else batch

    @in_turn
    def __reduce__(self) -> Any:
        self._rows.finish_refill()
        self.reader.close()  # a thread that reads ahead changes what is copied
        try:
            content = _pickled(self.__getstate__())  # unpickled, it goes on with the next row, beside this one
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"A part of the ActivationBuffer over {self.reader.name} cannot be pickled ({error}). Build the buffer "
                "where it is read, or write a cache."
            ) from error
        return _unpickled, (content,)

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute by its name in dictionary-learning 0.1, such as `d_submodule`."""
        if name.startswith("_") or "reader" not in vars(self):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'.")
        from dictionary_learning.compat._buffer_names import older_attribute

        return older_attribute(self, name)

    @checked()
    def share(self, number: int, of: int) -> "ActivationBuffer":
        """Returns a buffer of the same size over one of `of` shares of the text.

        A share that has no text, as of fewer documents than shares, ends at once.

        Raises:
            ConfigError: Contexts come from a stream that cannot be divided.
            DataError: The text was read from already.
        """
        stream = share_of(self.tokens, number, of)
        part = type(self).__new__(type(self))
        vars(part).update(self.__getstate__())
        part.tokens = stream
        # documents are dealt out from the first share on: where that has none, the text is empty
        rows = RowReader(
            self.model, part.tokens, self.sites, self.filter, repeat=self._repeats, may_be_empty=number > 0
        )
        part.reader = ahead(rows, self.refresh_batch_size, self.prefetch)
        seed = (self.seed + _SHARE_STRIDE * number) % 2**63  # orders of shares are independent
        part._rows = ShuffledRows(part.reader, self._rows.slots, seed=seed, retrace=self._retrace)
        return part

    @checked()
    @in_turn
    def expect(self, n_batches: int | None) -> None:
        """Says how many batches will be taken from now on: no more text is read than they need.

        `trainSAE` does it. Batches beyond that number are served as well. None: it is not known.
        """
        self._rows.expect(None if n_batches is None else n_batches * self.out_batch_size)

    @in_turn
    def find_norm_limits(self) -> dict[str, float] | None:
        """Returns the norm limits that the first contexts give, by site; None without a limit."""
        if self.filter.max_norm_multiple is None:
            return None
        if not self.norm_limits:
            self.reader.look(self.refresh_batch_size)
        return by_name(self.norm_limits) or None

    @checked()
    @in_turn
    def set_norm_limits(self, limits: Mapping[str, float]) -> None:
        """Sets the norm limits by site, before rows are read with others.

        Raises:
            ConfigError: It has no such limits, or rows were read with others.
        """
        limits = self._checked_limits(limits)
        if by_name(self.norm_limits) != limits:
            self.reader.load_state_dict({**copy.deepcopy(self.reader.state_dict()), "norm_limits": limits})

    def _checked_limits(self, limits: Mapping[str, float]) -> dict[str, float]:
        wanted = [str(site) for site in self.sites]
        given = {str(Site.parse(str(site))): limit for site, limit in limits.items()}
        if self.filter.max_norm_multiple is None:
            raise ConfigError("Got norm limits, and max_activation_norm_multiple=None excludes no token. Set a number.")
        if set(given) != set(wanted) or not all(map(_is_norm, given.values())):
            raise ConfigError(
                f"Got limits={short(limits)}; give the largest norm, which is not below 0, at each site: "
                f"{', '.join(wanted)}."
            )
        if self._rows.were_read and by_name(self.norm_limits) != given:
            raise ConfigError(
                f"Got limits={short(limits)}, and rows were read with {by_name(self.norm_limits)}. Set them before the "
                "first batch."
            )
        return given

    @property
    def n_bytes(self) -> int:
        """Memory of the rows at all sites, in bytes, if all are held."""
        return self._rows.slots.n_bytes

    @property
    def n_rows(self) -> int:
        """Number of rows that are held and not served yet."""
        return self._rows.n

    @property
    def n_tokens_read(self) -> int:
        """Number of tokens that the model has read, without padding."""
        return self.reader.n_tokens_read

    @property
    def n_tokens_dropped(self) -> int:
        """Number of them that were excluded."""
        return self.reader.n_tokens_dropped

    @property
    def norm_limits(self) -> dict[Site, float] | None:
        """The largest norm that is included at each site; None before the first forward pass."""
        return self.reader.norm_limits

    @checked()
    @in_turn
    def reseed(self, seed: int) -> None:
        """Sets the seed of the shuffle; raises ConfigError if rows were read with another one."""
        if seed != self.seed and self._rows.were_read:
            raise ConfigError(f"Got seed={seed}, and rows were read with seed={self.seed}. Build the buffer with it.")
        if not self._rows.were_read:
            self.seed = seed
            self._rows.reseed(seed)

    @in_turn
    @usual_state()
    def refresh(self) -> None:
        """Runs the model over more text until the free slots are full, and draws a new order."""
        self._rows.refill()

    @in_turn
    def same_document_partners(self) -> float:
        """Returns how many rows of its own document a row meets in a batch, on average."""
        return self._rows.same_document_partners()

    @checked()
    @in_turn
    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, for estimates before training."""
        return self._rows.sample(n)

    @checked()
    @in_turn
    def tokenized_batch(self, batch_size: int | None = None) -> TokenBatch:
        """Returns the next contexts, which are then not served, or raises DataExhaustedError."""
        self._rows.finish_refill()
        self.reader.close()  # a thread that reads ahead must not read the same text at the same time
        batch = self.tokens.take(batch_size or self.refresh_batch_size)
        if batch is None:
            raise DataExhaustedError(f"{self.reader.name} has ended. Give more text.")
        return batch

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the rows and their order, to be stored with dictionaries."""
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
            "begins_with_bos": getattr(self.tokens, "begins_with_bos", None),
            "end_of_data": self.end_of_data,
            "seed": self.seed,
            "filter": {**self.filter.to_dict(), "norm_limits": by_name(self.norm_limits)},
            "dropped": {"read": self.n_tokens_read, **self.reader.dropped},
        }

    @in_turn
    def close(self) -> None:
        """Frees the memory that rows do not need which wait to be served, and ends threads.

        Batches go on where they were; they take memory again, and fill the buffer.
        """
        self._rows.close()

    @in_turn
    def state_dict(self) -> dict[str, Any]:
        """Returns what determines the next batches: unserved rows, shuffle, place in the text."""
        return self._rows.state_dict()

    @checked(wraps=DataError)
    @in_turn
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of an equal buffer; other sites or sizes raise ConfigError."""
        self._rows.load_state_dict(state)


def _is_norm(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def _pickled(state: dict[str, Any]) -> bytes:
    """Returns a state as bytes for a process that has this package."""
    import cloudpickle  # as nnsight does: readers of text hold functions

    # models on a server register it, for a server that lacks it
    package = sys.modules[__name__.partition(".")[0]]
    is_sent = package.__name__ in cloudpickle.list_registry_pickle_by_value()
    if is_sent:
        cloudpickle.unregister_pickle_by_value(package)
    try:
        return cloudpickle.dumps(state)
    finally:
        if is_sent:
            cloudpickle.register_pickle_by_value(package)


def _unpickled(content: bytes) -> ActivationBuffer:
    buffer = ActivationBuffer.__new__(ActivationBuffer)
    vars(buffer).update(pickle.loads(content))
    return buffer
