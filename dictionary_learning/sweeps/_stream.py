"""One stream of activations, which every group of a sweep reads from its beginning."""

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.activations.cache import ActivationCache, write_cache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.contexts import ContextStream
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

CACHE = "activations"
"""The folder of the cache, in that of the sweep."""


class SharedStream:
    """The same rows in the same order for each group.

    A buffer over a model serves one group; for several its rows are written to a cache first. Other
    data return to where they were; lists are read again.

    Args:
        data: What `trainSAE` takes, or a function that makes it.
        folder: The folder of the sweep.
        steps: Batches that a group reads.

    Raises:
        ConfigError: The data were read from already.
    """

    def __init__(self, data: Any, folder: Path, steps: int):
        self._make: Any = data if callable(data) and not hasattr(data, "__iter__") else None
        self._data: Any = self._make() if self._make else data
        self._folder, self._steps = folder, steps
        if isinstance(self._data, ActivationBuffer) and self._data.n_tokens_read:
            raise ConfigError(
                "Got a buffer that was read from, and every group starts at its beginning. Give a new one."
            )
        is_stateful = hasattr(self._data, "state_dict") and hasattr(self._data, "load_state_dict")
        self._start = copy.deepcopy(self._data.state_dict()) if is_stateful else None
        self._is_written = False
        self.widths: dict[Site, int] = {}
        self.batch_size = 0
        self._look()

    @property
    def data(self) -> Any:
        """The data, to be described; nothing is read from them."""
        return self._data

    def for_group(self, n_groups: int) -> Any:
        """Returns the data from their beginning.

        Args:
            n_groups: Groups that the sweep has in all.

        Raises:
            ConfigError: There are several groups, and the data can be read only once.
        """
        if n_groups == 1:
            return self._data
        if self._make is not None:
            return self._make()
        if isinstance(self._data, ActivationBuffer):
            return self._cache(self._data)
        if self._start is not None:
            self._data.load_state_dict(copy.deepcopy(self._start))
            return self._data
        if iter(self._data) is self._data:
            raise ConfigError(
                "The dictionaries do not fit into memory together, and the data can be read only once. Give a list, an "
                "ActivationBuffer, an ActivationCache, or a function that makes the data; or raise memory_gb."
            )
        return self._data

    def _look(self) -> None:
        data: Any = self._data
        if hasattr(data, "widths"):
            self.widths = {Site.parse(site): width for site, width in data.widths.items()}
            self.batch_size = getattr(data, "out_batch_size", 0)
            if isinstance(data, ContextStream):
                self.batch_size = data.batch_size * data.tokens.ctx_len
            return
        if not isinstance(data, Iterable) or iter(data) is data:
            raise ConfigError(
                f"Got a {type(data).__name__} as data of a sweep, which every group reads from its beginning. Give a "
                "list of batches, an ActivationBuffer, an ActivationCache, or a function that makes the data."
            )
        stream = ActivationStream(data)
        self.widths = stream.widths
        self.batch_size = len(next(iter(next(stream).values())))

    def _cache(self, buffer: ActivationBuffer) -> ActivationCache:
        """Returns the rows that the buffer would read, from a cache; it is written or continued."""
        path = self._folder / CACHE
        if not self._is_written:
            logger.info("The dictionaries do not fit into memory together: activations are written to '%s'.", path)
            write_cache(
                path,
                buffer.tokens,
                buffer.model,
                buffer.sites,
                n_tokens=self._steps * buffer.out_batch_size,
                refresh_batch_size=buffer.refresh_batch_size,
                seed=buffer.seed,
                dtype=buffer.dtype,
                **buffer.filter.arguments(),
            )
            self._is_written = True
        options = {"out_batch_size": buffer.out_batch_size, "seed": buffer.seed, "end_of_data": buffer.end_of_data}
        return ActivationCache(path, **options)
