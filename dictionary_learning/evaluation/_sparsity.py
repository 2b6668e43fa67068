"""How sparse latents are, and which of them are alive."""

import math
from typing import Any

import torch

from dictionary_learning._hardware import float64
from dictionary_learning.evaluation._base import METRICS, EvaluationBatch, Metric
from dictionary_learning.latents import firing_counts, nonzeros

_BINS_PER_DECADE = 4


@METRICS.register("sparsity")
class SparsityMetric(Metric):
    """Metrics of the latents over n tokens.

    * `l0` = mean number of nonzero latents per token; lower is sparser.
    * `l1_loss` = mean over tokens of the sum of their absolute values.
    * `frac_alive` = share of latents that fired on at least one of the n tokens, from 0 to 1, higher is better. It grows
      with n: a latent that fires less often than once in n tokens cannot be told from a dead one.
    """

    def update(self, batch: EvaluationBatch) -> None:
        self.add("n", len(batch.x))
        self.add("absolute", float64(nonzeros(batch.latents)).abs().sum())
        self.add("firings", firing_counts(batch.latents))  # (dict_size,)

    def compute(self) -> dict[str, float]:
        n = self.total("n")
        if not n:
            return {}
        alive = int((self.sums["firings"] > 0).sum())
        return {
            "l0": float(self.sums["firings"].sum()) / n,
            "l1_loss": self.total("absolute") / n,
            "n_alive": alive,
            "frac_alive": alive / len(self.sums["firings"]),
        }

    def density(self) -> dict[str, Any]:
        """Returns a histogram over latents of log10 of the share of tokens on which each fires.

        Returns:
            `log10_edges` from 1/n, the resolution, to 1; the `counts` between them; `n_never_fired`, which are in no bin.
        """
        n, counts = self.total("n"), self.sums["firings"]
        # the lowest bin begins at or below 1/n, the smallest share that can be seen
        lowest = math.floor(math.log10(1 / n) * _BINS_PER_DECADE) if n else -_BINS_PER_DECADE
        edges = torch.arange(lowest, 1, dtype=torch.float64) / _BINS_PER_DECADE
        shares = (counts[counts > 0] / n).log10().cpu().clamp(edges[0], edges[-1])
        histogram = torch.histogram(shares, edges).hist.long()
        return {
            "log10_edges": edges.tolist(),
            "counts": histogram.tolist(),
            "n_never_fired": int((counts == 0).sum()),
        }
