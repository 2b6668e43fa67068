"""Metrics of latents: how many fire on a token, and how often each fires."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.evaluation._metrics import METRICS, EvaluationBatch, Metric
from dictionary_learning.latents import Latents

DENSE = 0.1
"""Share of tokens from which a latent is called dense."""
_BINS_PER_DECADE = 4
_NEVER = 2**62
"""Place of the first token of a latent that never fired."""


@METRICS.register("sparsity")
class SparsityMetric(Metric):
    """Metrics of the latents over n tokens.

    * `l0` = mean number of nonzero latents per token; lower is sparser.
    * `l1_loss` = mean over tokens of the sum of their absolute values.
    * `frac_alive` = share of latents that fired on at least one of the n tokens, from 0 to 1,
      higher is better. It grows with n: a latent that fires less often than once in n tokens cannot
      be told from a dead one.
    * `frac_dense` = share of latents that fired on more than a tenth of the tokens, from 0 to 1;
      such latents are rarely interpretable.
    """

    def update(self, batch: EvaluationBatch) -> None:
        tokens, latents, values, dict_size = _pairs(batch.latents)
        n, before = len(batch.x), int(self.total("n"))
        fired = values != 0
        # a GPU adds integers to the same bits in any order
        per_token = torch.zeros(n, dtype=torch.long, device=values.device).index_add(0, tokens, fired.long())
        counts = torch.zeros(dict_size, dtype=torch.long, device=values.device).index_add(0, latents, fired.long())
        self.add("firings", counts)
        row_sums = _row_sums(batch.latents)
        self.by_document.add(
            batch.groups,
            {"n": torch.ones(n, dtype=torch.float64), "active": per_token.cpu(), "absolute": row_sums.cpu()},
        )
        tokens, latents = tokens[fired].cpu(), latents[fired].cpu()
        groups = torch.zeros(n, dtype=torch.long) if batch.groups is None else batch.groups.cpu()
        self._note("first token", latents, tokens + before, dict_size, "amin")
        self._note("first group", latents, groups[tokens], dict_size, "amin")
        self._note("last group", latents, groups[tokens], dict_size, "amax")

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Int[Tensor, "dict_size"]] = {}
        """For each latent the place of the first token that it fired on, and of the first and last
        group of documents."""

    def figures(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        if not self.by_document.tables:
            return {}
        totals = self.by_document.totals(weights)
        alive = float((self.sums["firings"] > 0).sum())
        n_alive = torch.tensor([alive], dtype=torch.float64)
        if weights is not None:
            # A group left out takes the latents with it that fired nowhere else. This is the first
            # order in the weights: the jackknife's variance, without counts by latent and document.
            own = torch.bincount(self.only_groups(), minlength=weights.shape[1]).double()  # (groups,)
            n_alive = alive + (weights - 1) @ own
        return {
            "l0": totals["active"] / totals["n"],
            "l1_loss": totals["absolute"] / totals["n"],
            "n_alive": n_alive,
            "frac_alive": n_alive / len(self.sums["firings"]),
        }

    def compute(self) -> dict[str, float]:
        found = {name: float(value) for name, value in self.figures().items()}
        if not found:
            return {}
        share = self.sums["firings"] / self.total("n")  # (dict_size,)
        return {**found, "n_alive": int(found["n_alive"]), "frac_dense": float((share > DENSE).double().mean())}

    def merge_beside_sums(self, other: Metric, index: Int[Tensor, "groups"] | None) -> None:
        assert isinstance(other, SparsityMetric)
        shift = int(self.total("n"))  # the tokens of the other come after those here
        for name, theirs in other.places.items():
            known = theirs.abs() < _NEVER
            moved = theirs + shift if name == "first token" else theirs
            if name != "first token" and index is not None:
                moved = index[theirs.where(known, 0)]
            moved = moved.where(known, theirs)
            mine = self.places.get(name, moved)
            self.places[name] = torch.maximum(mine, moved) if name == "last group" else torch.minimum(mine, moved)

    def only_groups(self) -> Int[Tensor, "n"]:
        """Returns, of each latent that fired in one group of documents alone, that group."""
        first, last = self.places["first group"], self.places["last group"]
        return first[first == last]

    def density(self) -> dict[str, Any]:
        """Returns a histogram over latents of log10 of the share of tokens on which each fires.

        Returns:
            `log10_edges` from 1/n, the resolution, to 1; the `counts` between them;
            `n_never_fired`, which are in no bin; the `resolution`; and `n_dense`.
        """
        n, counts = self.total("n"), self.sums["firings"]
        # the lowest bin begins at or below 1/n, the smallest share that can be seen
        lowest = math.floor(math.log10(1 / n) * _BINS_PER_DECADE) if n > 1 else -_BINS_PER_DECADE
        edges = torch.arange(lowest, 1, dtype=torch.float64) / _BINS_PER_DECADE
        shares = (counts[counts > 0] / n).log10().cpu().clamp(edges[0], edges[-1])
        return {
            "log10_edges": edges.tolist(),
            "counts": torch.histogram(shares, edges).hist.long().tolist(),
            "n_never_fired": int((counts == 0).sum()),
            "resolution": 1 / n,
            "n_dense": int((counts / n > DENSE).sum()),
        }

    def dead_by_tokens(self) -> dict[str, list[float]]:
        """Returns the share of latents that had not fired after 1, 2, 4, ... and all `tokens`."""
        n, first = int(self.total("n")), self.places["first token"]
        after = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
        return {"tokens": after, "frac_dead": [float((first >= t).double().mean()) for t in after]}

    def _note(self, name: str, latents: Tensor, places: Tensor, dict_size: int, reduce: str) -> None:
        start = _NEVER if reduce == "amin" else -_NEVER
        table = self.places.setdefault(name, torch.full((dict_size,), start))
        self.places[name] = table.scatter_reduce(0, latents, places, reduce)


def _pairs(latents: Latents) -> tuple[Tensor, Tensor, Tensor, int]:
    """Returns the tokens, latents and values of the pairs that may be non-zero, and dict_size."""
    if isinstance(latents, Tensor):
        tokens, columns = latents.nonzero(as_tuple=True)
        return tokens, columns, latents[tokens, columns], latents.shape[1]
    return latents.support.tokens, latents.support.latents, latents.values.flatten(), latents.dict_size


def _row_sums(latents: Latents) -> Float[Tensor, "batch"]:
    """Returns the sum of the absolute latents of each token."""
    if isinstance(latents, Tensor):
        return float64(latents).abs().sum(-1)
    values = float64(latents.values).abs()
    if not latents.support.is_ragged:
        return values.sum(-1)
    return torch.segment_reduce(values, "sum", offsets=latents.support.offsets.to(values.device), axis=0)
