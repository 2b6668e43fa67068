"""Serves activations from disk, without a language model, as fast as the disk reads."""

import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dictionary_learning._border import checked
from dictionary_learning._hardware import as_device
from dictionary_learning._in_turn import InTurn, in_turn
from dictionary_learning._types import ModelLike, SitesLike, SubmodulesLike, TextLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._reader import Rows
from dictionary_learning.activations._storage import storage_dtype
from dictionary_learning.activations._stream import ActivationBatch, check_width
from dictionary_learning.activations.cache._index import Index, load_index, model_fingerprint
from dictionary_learning.activations.cache._shards import OpenShard, checksum, generator_of
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.activations.cache._writing import write_cache
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError, SiteError
from dictionary_learning.models import called, load_model
from dictionary_learning.sites import Site, expand

logger = logging.getLogger(__name__)


class ActivationCache(InTurn, IterableDataset["Tensor | ActivationBatch"]):
    """Serves the rows of a cache in batches, every row once; it can replace an `ActivationBuffer`.

    The writer shuffled the rows within each shard. Batches take rows from several shards side by
    side, in an order of shards that differs between epochs. Without a seed, shards are served one
    after another as they were written. Workers of a DataLoader share the shards.

    Args:
        path: a local folder, or an address that fsspec knows.
        submodule: sites to serve, or patterns of them; by default all.
        out_batch_size: rows in a batch.
        seed: seed of the order of shards; None for the order in which they were written.
        window: number of shards that are read side by side; 1 without a seed.
        end_of_data: `stop` ends after the last row, `repeat` restarts, `error` raises.
        device: device of the batches; by default the CPU.
        dtype: type of the batches; by default the type of the cache, and float32 for int8.
        d_submodule: the width of the sites, to be checked.
        model: the model, to be checked: its name, and the weights of an object.

    Raises:
        DataError: there is no cache, or it is damaged, or of another model.
        SiteError: it has no such site.
        ConfigError: an argument cannot be used, or the width differs.
    """

    @checked(wraps=DataError)
    def __init__(
        self,
        path: str | os.PathLike[str],
        submodule: SitesLike | None = None,
        *,
        out_batch_size: int = 8192,
        seed: int | None = 0,
        window: int = 8,
        end_of_data: Literal["stop", "repeat", "error"] = "stop",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        d_submodule: int | None = None,
        model: ModelLike | None = None,
    ):
        self.store = Store(path)
        self.index: Index = load_index(self.store)
        self.widths = self._chosen(submodule)
        self.sites = list(self.widths)
        self.out_batch_size, self.end_of_data = out_batch_size, end_of_data
        self.seed, self.window = seed, window if seed is not None else 1
        self.device = as_device(device or "cpu")
        self.dtype = storage_dtype(dtype) if dtype is not None else None
        check_width(d_submodule, self.widths)
        self._check_model(model)
        self._checked: set[int] = set()  # shards whose checksum was compared
        self._worker: tuple[int, int] = (0, 1)  # number of this worker, and of all
        self._start_epoch(0)
        if not self.index.is_complete:
            logger.warning("'%s' is not complete: it has %s rows so far.", self.store.path, f"{self.n_rows:,}")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], data: TextLike, model: ModelLike, submodule: SubmodulesLike, **options: Any
    ) -> "ActivationCache":
        """Writes a cache, or the rest of one, and opens it (see `write_cache`)."""
        write_cache(path, data, model, submodule, **options)
        return cls(path)

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]:
        return self

    @usual_state()
    def __next__(self) -> Tensor | ActivationBatch:
        batch = self.rows().activations
        return batch[self.sites[0]] if len(self.sites) == 1 else batch

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_shards": {}}  # a copy in another process opens the files itself

    @in_turn
    def rows(self) -> Rows:
        """Returns the next batch with the token, document and position of each row.

        Raises:
            StopIteration: the rows have ended, with `end_of_data="stop"`.
            DataExhaustedError: the same, with `end_of_data="error"`.
        """
        self._share_among_workers()
        if self._at_end():
            self._end_epoch()
        parts: list[tuple[dict[Site, Tensor], tuple[Tensor, ...]]] = []
        needed, following, places = self.out_batch_size, self._next, dict(self._open)
        while needed and (places or following < len(self._order)):
            while len(places) < self.window and following < len(self._order):
                places[self._order[following]] = 0
                following += 1
            share = -(-needed // len(places))  # rows from each open shard, rounded up
            for number, start in list(places.items()):
                n_rows = self.index.shards[number].n_rows
                stop = min(start + min(share, needed), n_rows)
                shard = self._shard(number)
                parts.append((shard.read(start, stop), shard.origin(start, stop)))
                needed -= stop - start
                places[number] = stop
                if stop == n_rows:
                    del places[number], self._shards[number]
        activations = {site: torch.cat([x[site] for x, _ in parts]).to(self.device) for site in self.sites}
        token, document, position = (torch.cat(origin) for origin in zip(*(o for _, o in parts), strict=True))
        rows = Rows(activations, token, document, position)
        self._open, self._next = places, following  # last, so that an interrupt loses no rows
        return rows

    @checked()
    @in_turn
    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later."""
        state = self.state_dict()
        parts: list[dict[Site, Tensor]] = []
        n_found = 0
        while n_found < n and not (parts and self._at_end()):
            rows = self.rows()
            parts.append(rows.activations)
            n_found += rows.n
        self.load_state_dict(state)
        return {site: torch.cat([part[site] for part in parts])[:n] for site in self.sites}

    @checked()
    @in_turn
    def reseed(self, seed: int) -> None:
        """Sets the seed of the order of shards, where there is one.

        Raises:
            ConfigError: Rows were served already, in an order of another seed.
        """
        if self.seed in (None, seed):
            return
        if self._epoch or self._next:
            raise ConfigError(f"Got seed={seed}, and rows were served with seed={self.seed}. Open the cache with it.")
        self.seed = seed
        self._start_epoch(0)

    def n_heads(self, site: Site) -> int:
        """Returns the number of attention heads whose outputs are concatenated at a site.

        Raises:
            SiteError: the model's config did not tell it.
        """
        found = self.index.settings.get("n_heads", {}).get(str(site))
        if found is None:
            raise SiteError(
                f"The cache '{self.store.path}' knows of no attention heads at '{site}'. Set n_heads, or write the "
                "site as ':heads'."
            )
        return found

    @property
    def n_rows(self) -> int:
        """Number of rows in the cache."""
        return self.index.n_rows

    @property
    def filter(self) -> TokenFilter:
        """The filter that selected the tokens when the cache was written."""
        return TokenFilter.from_dict(self.index.settings.get("rule", {}))

    @property
    def norm_limits(self) -> dict[Site, float]:
        """The largest norm that was included at each site."""
        limits = self.index.filter.get("norm_limits", {})
        return {Site.parse(site): limit for site, limit in limits.items()}

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the rows and their order, to be stored with dictionaries."""
        written = {name: value for name, value in self.index.settings.items() if name not in ("sites", "rule", "seed")}
        own = {name: getattr(self, name) for name in ("out_batch_size", "end_of_data", "seed", "window")}
        sites, index = [str(site) for site in self.sites], self.index
        return {
            **written, "cache": self.store.path, "sites": sites, **own,
            "filter": index.filter, "dropped": index.dropped,
        }  # fmt: skip

    def verify(self) -> None:
        """Reads all shards and compares their SHA-256 with the index.

        Raises:
            DataError: some differ; the message names them.
        """
        damaged: list[str] = []
        for shard in self.index.shards:
            if not self.store.exists(shard.file) or checksum(self.store, shard.file) != shard.sha256:
                damaged.append(shard.file)
        if damaged:
            raise DataError(
                f"{len(damaged)} of {len(self.index.shards)} shards in '{self.store.path}' are not what was written: "
                f"{', '.join(damaged[:8])}. Write the cache again."
            )

    @in_turn
    def close(self) -> None:
        """Closes the files; the next batch opens them again."""
        self._shards = {}

    @in_turn
    def state_dict(self) -> dict[str, Any]:
        """Returns the position, as plain data."""
        return {"epoch": self._epoch, "open": [list(pair) for pair in self._open.items()], "next": self._next}

    @checked(wraps=DataError)
    @in_turn
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position in the same cache, served with the same arguments."""
        places, following = {int(number): int(row) for number, row in state["open"]}, int(state["next"])
        shards = dict(enumerate(self.index.shards))
        if not all(n in shards and 0 <= row < shards[n].n_rows for n, row in places.items()) or following > len(shards):
            raise DataError(
                f"The state is of a cache with other shards than '{self.store.path}', which has {len(shards)}. Load it "
                "into the cache that it was taken from."
            )
        self._start_epoch(int(state["epoch"]))
        self._open, self._next = places, following

    def _start_epoch(self, epoch: int) -> None:
        number, n_workers = self._worker
        self._open: dict[int, int] = {}  # open shards, with their next rows
        self._shards: dict[int, OpenShard] = {}
        order: list[int] = list(range(len(self.index.shards)))
        if self.seed is not None:
            order[:] = torch.randperm(len(order), generator=generator_of(self.seed, epoch)).tolist()
        # `_next` is the place in the order of the shard to open next
        self._order, self._epoch, self._next = order[number::n_workers], epoch, 0

    def _share_among_workers(self) -> None:
        """Leaves to this worker of a DataLoader its part of the shards that are not served yet."""
        info = get_worker_info()
        worker = (0, 1) if info is None else (info.id, info.num_workers)
        if worker == self._worker:
            return
        number, n_workers = self._worker = worker
        self._shards = {}  # no file that another process has open
        self._open = dict(list(self._open.items())[number::n_workers])
        self._order, self._next = self._order[self._next :][number::n_workers], 0

    def _shard(self, number: int) -> OpenShard:
        """Returns an open shard; its checksum is compared once."""
        if number not in self._shards:
            shard, check = self.index.shards[number], number not in self._checked
            self._shards[number] = OpenShard(self.store, shard, self.widths, self.dtype, check=check)
            self._checked.add(number)
        return self._shards[number]

    def _at_end(self) -> bool:
        return not self._open and self._next >= len(self._order)

    def _end_epoch(self) -> None:
        """Starts the next epoch, if there is one."""
        if self.end_of_data == "error" or not self.index.shards:
            raise DataExhaustedError(
                f"'{self.store.path}' ended after {self.n_rows:,} rows. Lower the number of steps, or set end_of_data "
                "to 'repeat'."
            )
        more_workers_than_shards = self._worker[0] >= len(self.index.shards)
        if self.end_of_data == "stop" or more_workers_than_shards:
            raise StopIteration
        logger.info("'%s' has ended after %s rows and restarts.", self.store.path, f"{self.n_rows:,}")
        self._start_epoch(self._epoch + 1)

    def _chosen(self, submodule: SitesLike | None) -> dict[Site, int]:
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

    def _check_model(self, model: ModelLike | None) -> None:
        if model is None:
            return
        settings, written = self.index.settings, self.index.settings["model"]
        wanted: dict[str, Any] = {"name": model}
        if not isinstance(model, str):
            traced = load_model(model)
            wanted = traced.describe()
            # in another precision the same weights have other values
            known = settings.get("model_fingerprint") if wanted.get("dtype") == written.get("dtype") else None
            if known not in (None, model_fingerprint(traced)):
                raise DataError(
                    f"The cache '{self.store.path}' is of {called(written)!r} with other weights. Use another cache."
                )
        if called(wanted) != called(written):
            raise DataError(
                f"The cache '{self.store.path}' is of the model {called(written)!r}, not {called(wanted)!r}. "
                "Use another cache."
            )
