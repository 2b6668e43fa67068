"""Mixes several sources of activations: caches of different texts, or a cache and a live model."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._in_turn import InTurn, in_turn
from dictionary_learning._usual_state import usual_state
from dictionary_learning.activations._stream import ActivationBatch
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.sites import Site


class ActivationMixture(InTurn):
    """Serves batches with a fixed share of rows from each source, until one source ends.

    Args:
        sources: `ActivationBuffer`s, `ActivationCache`s, or the like, of the same sites.
        weights: share of each source, equal by default. Shares are rounded down to whole rows; the
            first source gets the rest.
        out_batch_size: rows in a batch.

    Raises:
        ConfigError: sites or widths differ, or a share has no row.
    """

    @checked()
    def __init__(self, sources: Sequence[Any], weights: Sequence[float] | None = None, out_batch_size: int = 8192):
        if not sources or not all(hasattr(source, "widths") for source in sources):
            raise ConfigError(f"Got sources={short(sources)}; give two or more buffers or caches to mix.")
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or min(weights) <= 0:
            raise ConfigError(f"Got the weights {weights} for {len(sources)} sources; each needs one above 0.")
        self.widths: dict[Site, int] = dict(sources[0].widths)
        for number, source in enumerate(sources):
            if dict(source.widths) != self.widths:
                ours, theirs = (", ".join(f"{s}: {w}" for s, w in w.items()) for w in (self.widths, source.widths))
                raise ConfigError(
                    f"Source {number} has {theirs}, and the first has {ours}; only the same sites can be mixed."
                )
        self.sources, self.sites, self.out_batch_size = list(sources), list(self.widths), out_batch_size
        shares = [int(out_batch_size * weight / sum(weights)) for weight in weights]
        shares[0] += out_batch_size - sum(shares)
        if min(shares) < 1:
            raise ConfigError(
                f"A batch of {out_batch_size} rows has none for a source with the weights {weights}. "
                "Raise out_batch_size."
            )
        self.shares = shares
        self._held: list[dict[Site, Tensor]] = [{} for _ in sources]  # rows that are not served yet
        self._arrived: list[Any] = [None for _ in sources]  # a batch that is not among them yet

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]:
        return self

    @in_turn
    @usual_state()
    def __next__(self) -> Tensor | ActivationBatch:
        for number, share in enumerate(self.shares):
            self._fill(number, share)
        shared = list(zip(self._held, self.shares, strict=True))
        parts = [{site: x[:share] for site, x in held.items()} for held, share in shared]
        left = [{site: x[share:] for site, x in held.items()} for held, share in shared]
        batch = {site: torch.cat([part[site].to(parts[0][site]) for part in parts]) for site in self.sites}
        served = batch[self.sites[0]] if len(self.sites) == 1 else batch
        self._held = left  # last, so that an interrupt loses no rows
        return served

    @checked()
    @in_turn
    def expect(self, n_batches: int | None) -> None:
        """Says how many batches will be taken from now on: sources read no more than they need."""
        for source, share, held in zip(self.sources, self.shares, self._held, strict=True):
            if not hasattr(source, "expect"):
                continue
            n_held = len(held[self.sites[0]]) if held else 0
            n_rows = None if n_batches is None else max(n_batches * share - n_held, 0)
            source.expect(None if n_rows is None else -(-n_rows // source.out_batch_size))

    @checked()
    @in_turn
    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns about n rows that will be served later, in the shares of the mixture."""
        wanted = [max(1, n * share // self.out_batch_size) for share in self.shares]
        samples = [source.sample(k) for source, k in zip(self.sources, wanted, strict=True)]
        return {site: torch.cat([sample[site].to(samples[0][site]) for sample in samples]) for site in self.sites}

    @property
    def config(self) -> dict[str, Any]:
        """The config of the first source, and configs and shares of all."""
        first = self.sources[0].config
        return {**first, "mixture": [{"rows": n, **s.config} for n, s in zip(self.shares, self.sources, strict=True)]}

    @in_turn
    def state_dict(self) -> dict[str, Any]:
        """Returns everything that determines the next batches."""
        held = [{str(site): x for site, x in rows.items()} for rows in self._held]
        return {"sources": [source.state_dict() for source in self.sources], "left": held}

    @checked(wraps=DataError)
    @in_turn
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a mixture with the same arguments."""
        for source, its_state in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(its_state)
        self._held = [{Site.parse(site): x for site, x in rows.items()} for rows in state["left"]]

    def close(self) -> None:
        """Closes the sources."""
        for source in self.sources:
            source.close()

    def _fill(self, number: int, share: int) -> None:
        """Reads from a source until `share` of its rows are held."""
        while not self._held[number] or len(self._held[number][self.sites[0]]) < share:
            if self._arrived[number] is None:
                # unlike `next`, a loop stores the batch before Python raises an interrupt
                for self._arrived[number] in self.sources[number]:  # noqa: B020
                    break
                else:
                    raise StopIteration
            batch, held = self._arrived[number], self._held[number]
            rows = {self.sites[0]: batch} if isinstance(batch, Tensor) else dict(batch)
            merged = {site: torch.cat([held[site], x]) if held else x for site, x in rows.items()}
            self._held[number], self._arrived[number] = merged, None
