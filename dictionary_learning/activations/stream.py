"""The scale of activations, and looking at a stream without taking from it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.activations.source import ActivationBatch
from dictionary_learning.errors import DataError
from dictionary_learning.hardware import float64
from dictionary_learning.sites import Site

PLAIN = Site("activations")
"""The site of activations that come as plain tensors, from nowhere in particular."""


class ActivationStream:
    """A stream of `ActivationBatch` made of whatever gives activations; its beginning can be looked at beforehand.

    Args:
        data: an `ActivationBuffer`, or any iterable of tensors (batch, dim) or of mappings from sites to such tensors. Tensors
            (batch, 2, dim) are the input and the output of one module; with `split_by_head`, (batch, heads, dim) are heads.
        split_by_head: whether tensors of three dimensions are attention heads of one site.

    Raises:
        DataError: the data is empty, or its batches are neither tensors nor mappings to tensors.
    """

    def __init__(self, data: Any, *, split_by_head: bool = False):
        self.data = data
        self.n_heads: int | None = None
        """Heads in the activations, where they come apart."""
        self._split_by_head = split_by_head
        self._batches = iter(data)
        self._sites: tuple[Site, ...] = tuple(getattr(data, "sites", ()))
        self._ahead: list[ActivationBatch] = []
        widths = getattr(data, "widths", None)
        if not widths or split_by_head:
            first = self._look(1)
            widths = {site: x.shape[-1] for site, x in first[0].items()}
        self.widths: dict[Site, int] = {Site.parse(site): width for site, width in widths.items()}
        if not self._sites and len(self.widths) == 1:
            self._sites = tuple(self.widths)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        return self._ahead.pop(0) if self._ahead else self._read()

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns about n rows of each site, or fewer if there are no more; the stream gives them again later."""
        if hasattr(self.data, "sample"):
            sample = self.data.sample(n)
            return self._by_site(sample) if isinstance(sample, Tensor) else dict(sample)
        batches = self._look(n)
        return {site: torch.cat([batch[site] for batch in batches])[:n] for site in self.widths}

    def _look(self, n_rows: int) -> list[ActivationBatch]:
        held = sum(len(next(iter(batch.values()))) for batch in self._ahead)
        while held < n_rows:
            try:
                batch = self._read()
            except StopIteration:
                break
            self._ahead.append(batch)
            held += len(next(iter(batch.values())))
        if not self._ahead:
            raise DataError("The data gave no activations. Give at least one batch.")
        return self._ahead

    def _read(self) -> ActivationBatch:
        batch = next(self._batches)
        if isinstance(batch, Tensor):
            batch = self._by_site(batch)
        if not isinstance(batch, Mapping) or not batch:
            raise DataError(
                f"The data gave a {type(batch).__name__}; give tensors (batch, dim), or mappings from sites to them."
            )
        if not all(isinstance(site, Site) for site in batch):
            batch = {Site.parse(site): x for site, x in batch.items()}
        for site, x in batch.items():
            if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
                got = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
                raise DataError(f"The batch for '{site}' is {got}; a floating-point tensor (batch, dim) is needed.")
        return batch

    def _by_site(self, batch: Tensor) -> dict[Site, Tensor]:
        if batch.ndim == 3 and self._split_by_head:
            self.n_heads = batch.shape[1]
            batch = batch.flatten(1)
        if batch.ndim == 3 and batch.shape[1] == 2:
            sites = self._sites if len(self._sites) == 2 else (Site(PLAIN.path, "in"), PLAIN)
            return dict(zip(sites, batch.unbind(1), strict=True))
        return {self._sites[0] if len(self._sites) == 1 else PLAIN: batch}


def root_mean_square_norm(x: Tensor) -> float:
    """Returns sqrt(E|x|^2): divided by it, activations have unit mean squared norm.

    Raises:
        DataError: the activations are all zero, or not all finite.
    """
    scale = float(float64(x.float().pow(2).sum(-1)).mean().sqrt())
    if not 0 < scale < float("inf"):
        raise DataError(
            f"The activations have a root mean squared norm of {scale}; they cannot be normalized. Check the site and the model's dtype."
        )
    return scale
