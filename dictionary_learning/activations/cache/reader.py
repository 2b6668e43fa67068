"""Serving activations from disk: with no language model in memory, as fast as the disk reads."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.activations.cache.index import Index, load_index
from dictionary_learning.activations.cache.shards import OpenShard, checksum, generator_of
from dictionary_learning.activations.cache.store import Store
from dictionary_learning.activations.cache.writer import write_cache
from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.activations.reader import Rows
from dictionary_learning.activations.source import ActivationBatch
from dictionary_learning.activations.storage import storage_dtype
from dictionary_learning.data import check_end_of_data
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError, SiteError
from dictionary_learning.sites import Site, expand

logger = logging.getLogger(__name__)


class ActivationCache:
    """Serves the rows of a cache, a batch at a time, every row once; it takes the place of an `ActivationBuffer`.

    Rows were shuffled within their shard when they were written. Batches take rows from several shards side by side, in a
    random order of shards that is another one each time the cache begins again; without a seed, one shard after another as written.

    Args:
        path: the cache: a local folder, or an address that fsspec knows.
        submodule: the sites to serve, or patterns of them; by default all.
        out_batch_size: rows in a batch.
        seed: of the order of shards; None for the order in which they were written.
        window: how many shards are read side by side; 1 without a seed.
        end_of_data: `stop` ends the iteration after the last row, `repeat` begins again, `error` raises.
        device: where batches are put; by default they stay on the CPU.
        dtype: the type of the activations served; by default that in which they are kept, and float32 for int8.
        d_submodule: the width, if you want it checked.
        model: the model, or its name, if you want it checked.

    Raises:
        DataError: there is no cache, or it is damaged, or of another model.
        SiteError: it has no such site.
        ConfigError: an argument cannot be used, or the width is another.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        submodule: Any = None,
        *,
        out_batch_size: int = 8192,
        seed: int | None = 0,
        window: int = 8,
        end_of_data: Literal["stop", "repeat", "error"] = "stop",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        d_submodule: int | None = None,
        model: Any = None,
    ):
        check_end_of_data(end_of_data)
        if out_batch_size < 1 or window < 1:
            raise ConfigError(f"Got out_batch_size={out_batch_size} and window={window}; both must be at least 1.")
        self.store = Store(path)
        self.index: Index = load_index(self.store)
        self.widths = self._chosen(submodule)
        self.sites = list(self.widths)
        self.out_batch_size, self.seed, self.end_of_data = out_batch_size, seed, end_of_data
        self.window = window if seed is not None else 1
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.dtype = storage_dtype(dtype) if dtype is not None else None
        self._check(d_submodule, model)
        self._epoch = 0
        self._begin([], 0)
        if not self.index.is_complete:
            logger.warning("'%s' is not complete: it has %s rows so far.", self.store.path, f"{self.n_rows:,}")

    @classmethod
    def create(
        cls, path: str | os.PathLike, data: Any, model: Any, submodule: Any, **options: Any
    ) -> "ActivationCache":
        """Writes a cache, or what is missing of it, and opens it; the arguments are those of `write_cache`."""
        write_cache(path, data, model, submodule, **options)
        return cls(path)

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]:
        return self

    def __next__(self) -> Tensor | ActivationBatch:
        batch = self.rows().activations
        return batch[self.sites[0]] if len(self.sites) == 1 else batch

    def rows(self) -> Rows:
        """Returns the next batch with the token, document and position of each of its rows.

        Raises:
            StopIteration: there are no more, under `end_of_data="stop"`.
            DataExhaustedError: the same, under `end_of_data="error"`.
        """
        if self._at_end():
            self._end_epoch()
        parts: list[tuple[dict[Site, Tensor], tuple[Tensor, ...]]] = []
        needed = self.out_batch_size
        while needed and not self._at_end():
            self._open_shards()
            share = -(-needed // len(self._open))
            for number in list(self._open):
                start = self._open[number]
                stop = min(start + min(share, needed), self.index.shards[number].n_rows)
                shard = self._shards[number]
                parts.append((shard.read(start, stop), shard.places(start, stop)))
                needed -= stop - start
                self._open[number] = stop
                if stop == self.index.shards[number].n_rows:
                    del self._open[number], self._shards[number]
        activations = {site: torch.cat([x[site] for x, _ in parts]).to(self.device) for site in self.sites}
        return Rows(activations, *(torch.cat(places) for places in zip(*(p for _, p in parts), strict=True)))

    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, without taking them."""
        state = self.state_dict()
        parts: list[dict[Site, Tensor]] = []
        n_found = 0
        while n_found < n and not (parts and self._at_end()):
            rows = self.rows()
            parts.append(rows.activations)
            n_found += rows.n
        self.load_state_dict(state)
        return {site: torch.cat([part[site] for part in parts])[:n] for site in self.sites}

    def n_heads(self, site: Site) -> int:
        """Returns the number of attention heads whose outputs stand side by side at a site, as the model's config told it.

        Raises:
            SiteError: it told none.
        """
        found = self.index.settings.get("n_heads", {}).get(str(site))
        if found is None:
            raise SiteError(
                f"The cache '{self.store.path}' knows of no attention heads at '{site}'. Set n_heads, or write the site as ':heads'."
            )
        return found

    @property
    def n_rows(self) -> int:
        """How many rows the cache has."""
        return self.index.n_rows

    @property
    def filter(self) -> TokenFilter:
        """Which tokens were left out when it was written."""
        return TokenFilter.from_dict(self.index.settings.get("rule", {}))

    @property
    def norm_limits(self) -> dict[Site, float]:
        """The largest norms that were kept, by site."""
        limits = self.index.filter.get("norm_limits", {})
        return {Site.parse(site): limit for site, limit in limits.items()}

    @property
    def config(self) -> dict[str, Any]:
        """All that decides which rows are served, and in which order; kept with every dictionary trained on them."""
        written = {name: value for name, value in self.index.settings.items() if name not in ("sites", "rule", "seed")}
        return {
            **written,
            "cache": self.store.path,
            "sites": [str(site) for site in self.sites],
            "out_batch_size": self.out_batch_size,
            "end_of_data": self.end_of_data,
            "seed": self.seed,
            "window": self.window,
            "filter": self.index.filter,
            "dropped": self.index.dropped,
        }

    def verify(self) -> None:
        """Reads all shards and compares their checksums with the index.

        Raises:
            DataError: some are not what was written; the message names them.
        """
        damaged = [
            shard.file
            for shard in self.index.shards
            if not self.store.exists(shard.file) or checksum(self.store, shard.file) != shard.sha256
        ]
        if damaged:
            raise DataError(
                f"{len(damaged)} of {len(self.index.shards)} shards in '{self.store.path}' are not what was written: "
                f"{', '.join(damaged[:8])}. Write the cache again."
            )

    def close(self) -> None:
        """Closes the files; they are opened again when the next batch is asked for."""
        self._shards = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, as plain data."""
        return {"epoch": self._epoch, "open": [list(pair) for pair in self._open.items()], "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position in the same cache, served with the same arguments."""
        self._epoch = state["epoch"]
        self._begin(state["open"], state["next"])

    def _begin(self, opened: Iterable[Sequence[int]], following: int) -> None:
        """Sets out at a position: shards with their next rows, and the number in the order of the shard that follows."""
        self._open = {int(number): int(row) for number, row in opened}
        self._shards: dict[int, OpenShard] = {}
        self._next = following
        if self.seed is None:
            self._order = list(range(len(self.index.shards)))
        else:
            generator = generator_of(self.seed, self._epoch)
            self._order = torch.randperm(len(self.index.shards), generator=generator).tolist()

    def _open_shards(self) -> None:
        while len(self._open) < self.window and self._next < len(self._order):
            self._open[self._order[self._next]] = 0
            self._next += 1
        for number in self._open:
            if number not in self._shards:
                chosen = self.index.shards[number]
                self._shards[number] = OpenShard(self.store, chosen, self.widths, self.dtype)

    def _at_end(self) -> bool:
        return not self._open and self._next >= len(self._order)

    def _end_epoch(self) -> None:
        if self.end_of_data == "error" or not self.index.shards:
            raise DataExhaustedError(
                f"'{self.store.path}' ended after {self.n_rows:,} rows. Lower the number of steps, or set end_of_data to 'repeat'."
            )
        if self.end_of_data == "stop":
            raise StopIteration
        self._epoch += 1
        logger.info("'%s' has ended after %s rows and begins again.", self.store.path, f"{self.n_rows:,}")
        self._begin([], 0)

    def _chosen(self, submodule: Any) -> dict[Site, int]:
        widths = self.index.widths
        if submodule is None:
            return widths
        paths = dict.fromkeys(site.path for site in widths)
        chosen = expand(submodule, paths, model=f"the cache '{self.store.path}'")
        missing = [str(site) for site in chosen if site not in widths]
        if missing:
            raise SiteError(
                f"The cache '{self.store.path}' has no {', '.join(missing)}; it has: {', '.join(map(str, widths))}. "
                "Choose among those, or write another."
            )
        return {site: widths[site] for site in chosen}

    def _check(self, d_submodule: int | None, model: Any) -> None:
        if d_submodule is not None and set(self.widths.values()) != {d_submodule}:
            found = ", ".join(f"{site}: {width}" for site, width in self.widths.items())
            raise ConfigError(f"Got d_submodule={d_submodule}, but the widths are {found}. Leave d_submodule out.")
        written = self.index.settings["model"].get("name")
        wanted = model.describe()["name"] if hasattr(model, "describe") else model
        if wanted is not None and wanted != written:
            raise DataError(
                f"The cache '{self.store.path}' is of the model {written!r}, and {wanted!r} was asked for. Give the cache of that model."
            )
