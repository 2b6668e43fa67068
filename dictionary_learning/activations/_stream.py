"""Streams of activations: what trainers read, and a look ahead that consumes nothing."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import is_foreign, said
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.sites import Site

ActivationBatch = Mapping[Site, Float[Tensor, "batch dim"]]
"""Activations by site; row i is the same token at every site."""

PLAIN = Site("activations")  # the site of activations that are plain tensors without a known origin


@runtime_checkable
class ActivationSource(Protocol):
    """Serves batches of activations. Iterables of tensors or of `ActivationBatch` work as well."""

    widths: Mapping[Site, int]

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ActivationStream:
    """Converts any iterable of activations to a stream of `ActivationBatch`.

    Args:
        data: an `ActivationBuffer`, or any iterable of tensors (batch, dim) or of mappings from
            sites to such tensors. Tensors (batch, 2, dim) are the input and the output of one
            module.
        split_by_head: whether tensors (batch, heads, dim) hold the attention heads of one site.
    """

    def __init__(self, data: Any, *, split_by_head: bool = False):
        self.data = data
        self.n_heads: int | None = None  # number of attention heads, where tensors hold them separately
        self._split_by_head = split_by_head
        if not hasattr(data, "__iter__") or isinstance(data, (str, os.PathLike)):
            raise DataError(f"Got {_shown(data)} as data; an iterable of activations is needed.{_from_file(data)}")
        if getattr(data, "ndim", None) == 2:  # its rows would be taken for batches
            rows = "data" if isinstance(data, Tensor) else "torch.from_numpy(data)"
            raise DataError(
                f"Got a {type(data).__name__} of shape {tuple(data.shape)} as data; batches of rows are needed. "
                f"{_in_batches(rows)}"
            )
        self._batches = iter(data)
        self._sites: tuple[Site, ...] = tuple(getattr(data, "sites", ()))
        self._ahead: list[ActivationBatch] = []
        self._n_served = 0
        self.n_tokens = 0  # rows of the last batch
        self.widths: dict[Site, int] = {}
        widths = getattr(data, "widths", None)
        if not widths or split_by_head:
            first = self._look(1)
            widths = {site: x.shape[-1] for site, x in first[0].items()}
        self.widths = {Site.parse(site): width for site, width in widths.items()}
        if not self._sites and len(self.widths) == 1:
            self._sites = tuple(self.widths)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        batch = self._ahead.pop(0) if self._ahead else self._read()
        self._n_served += 1
        self.n_tokens = len(next(iter(batch.values())))
        return batch

    def expect(self, n_batches: int | None) -> None:
        """Says how many batches will be taken from now on; a buffer reads no more than these."""
        if hasattr(self.data, "expect"):
            self.data.expect(None if n_batches is None else max(n_batches - len(self._ahead), 0))

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns about n rows of each site, or fewer at the end; the stream serves them later."""
        if hasattr(self.data, "sample"):
            sample = self.data.sample(n)
            return self._by_site(sample) if isinstance(sample, Tensor) else dict(sample)
        batches = self._look(n)
        return {site: torch.cat([batch[site] for batch in batches])[:n] for site in self.widths}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the data, where it has one, or else the number of batches served."""
        if not (hasattr(self.data, "state_dict") and hasattr(self.data, "load_state_dict")):
            return {"n_served": self._n_served}
        data = self.data.state_dict()
        # also those that another rank has sent before it was asked for its state
        batches = [*self._ahead, *map(self._as_batch, getattr(self.data, "sent_ahead", ()))]
        ahead = [{str(site): x for site, x in batch.items()} for batch in batches]
        return {"n_served": self._n_served, "data": data, "ahead": ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where another stream over the same data was.

        Data without a state are read again up to there.

        Raises:
            DataError: The data end before.
        """
        if "data" in state:
            self.data.load_state_dict(state["data"])
            self._batches = iter(self.data)
            self._ahead = [{Site.parse(site): x for site, x in batch.items()} for batch in state["ahead"]]
            self._n_served = state["n_served"]
            return
        while self._n_served < state["n_served"]:
            if next(self, None) is None:
                raise DataError(
                    f"The run had used {state['n_served']} batches, and the data end after {self._n_served}. Give the "
                    "data from their start: they have no state_dict, so they are read again up to there."
                )

    def _look(self, n_rows: int) -> list[ActivationBatch]:
        """Reads ahead until so many rows are held, and returns the batches."""
        held = sum(len(next(iter(batch.values()))) for batch in self._ahead)
        while held < n_rows:
            try:
                batch = self._read()
            except StopIteration:
                break
            self._ahead.append(batch)
            held += len(next(iter(batch.values())))
        if not self._ahead:
            raise DataError("The data gave no activations. At least one batch is needed.")
        return self._ahead

    def _read(self) -> ActivationBatch:
        try:
            given: Any = next(self._batches)
        except Exception as error:
            if not is_foreign(error):
                raise
            message = f"The data failed after {self._n_served + len(self._ahead)} batches: {said(error)}"
            raise DataError(f"{message} Check what makes them.") from error
        return self._as_batch(given)

    def _as_batch(self, given: Any) -> ActivationBatch:
        batch: Any = self._by_site(given) if isinstance(given, Tensor) else given
        if not isinstance(batch, Mapping) or not batch:
            raise DataError(
                f"The data gave a {type(given).__name__}; a tensor (batch, dim), or a mapping from sites to such, "
                "is needed."
            )
        by_site = cast(Mapping[Any, Any], batch)
        if not all(isinstance(site, Site) for site in by_site):
            by_site = {Site.parse(site): x for site, x in by_site.items()}
        self._check(by_site)
        return by_site

    def _check(self, batch: Mapping[Site, Any]) -> None:
        for site, x in batch.items():
            dense = isinstance(x, Tensor) and x.layout is torch.strided and not x.is_meta
            if not dense or x.ndim != 2 or not x.is_floating_point():
                got = f"{tuple(x.shape)} of {x.dtype}" if dense else f"a {getattr(x, 'layout', type(x).__name__)}"
                raise DataError(f"The batch for '{site}' is {got}; a floating-point tensor (batch, dim) is needed.")
        missing = [str(site) for site in self.widths if site not in batch]
        if missing:
            raise DataError(f"A batch lacks the sites {', '.join(missing)}, which earlier batches had.")
        widths = {site: x.shape[-1] for site, x in batch.items() if self.widths.get(site, x.shape[-1]) != x.shape[-1]}
        for site, width in widths.items():
            raise DataError(
                f"A batch for '{site}' is {width} wide, and the earlier ones are {self.widths[site]}. Give batches of "
                "one width."
            )
        lengths = {str(site): len(x) for site, x in batch.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"A batch has different numbers of rows at its sites: {lengths}. Row i must be one token.")

    def _by_site(self, batch: Tensor) -> dict[Site, Tensor]:
        if batch.ndim == 3 and self._split_by_head:
            self.n_heads = batch.shape[1]
            batch = batch.flatten(1)  # (batch, heads * dim)
        if batch.ndim == 3 and batch.shape[1] == 2:
            sites = self._sites if len(self._sites) == 2 else (Site(PLAIN.path, "in"), PLAIN)
            return dict(zip(sites, batch.unbind(1), strict=True))
        return {self._sites[0] if len(self._sites) == 1 else PLAIN: batch}


def _in_batches(rows: str) -> str:
    """Returns what makes batches of a table of rows, as Python."""
    shuffled = f"{rows}[torch.randperm(len({rows}), generator=torch.Generator().manual_seed(0))]"
    return f"Give {shuffled}.split(256); that times 10 makes ten passes."


def _shown(data: Any) -> str:
    return repr(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else f"a {type(data).__name__}"


_READERS = {
    ".pt": "torch.load({path!r})",
    ".pth": "torch.load({path!r})",
    ".npy": "torch.from_numpy(numpy.load({path!r}))",
    ".safetensors": "next(iter(safetensors.torch.load_file({path!r}).values()))",
}
"""What reads rows from a file of a name."""


def _from_file(data: Any) -> str:
    """Returns advice on a path that is given as activations."""
    if not isinstance(data, (str, os.PathLike)):
        return ""
    path: str = os.fspath(cast(Any, data))
    if reader := _READERS.get(os.path.splitext(path)[1]):
        return f" Read it: data = {reader.format(path=path)}. {_in_batches('data')}"
    return f" For a text, give ActivationBuffer({path!r}, model, site); for a cache, ActivationCache({path!r})."


def check_width(wanted: int | None, widths: Mapping[Site, int]) -> None:
    """Checks that all sites have the width that a user expects, if any."""
    if wanted is not None and set(widths.values()) != {wanted}:
        found = ", ".join(f"{site}: {width}" for site, width in widths.items())
        raise ConfigError(f"Got d_submodule={wanted}, but the widths are {found}. Leave d_submodule out: it is found.")


def expected_partners(document: Int[Tensor, "n"], batch_size: int) -> float:
    """Returns how many rows of its document a row meets in a batch, on average; lower is better.

    (batch_size - 1) * sum_d n_d (n_d - 1) / (n (n - 1)), where document d has n_d of the n rows
    that batches are drawn from. Rows of unknown documents (-1) are ignored.
    """
    known = document[document >= 0]
    n = len(known)
    if n < 2:
        return 0.0
    # not bincount: numbers of documents may be large
    counts = cast(Tensor, torch.unique(known, return_counts=True)[1])  # pyright: ignore[reportUnknownMemberType]
    counts = counts.double()  # (documents,)
    return (batch_size - 1) * float((counts * (counts - 1)).sum()) / (n * (n - 1))
