"""How close reconstructions are to the activations."""

import torch

from dictionary_learning._hardware import float64
from dictionary_learning.evaluation._base import METRICS, EvaluationBatch, Metric, ratio


@METRICS.register("reconstruction")
class ReconstructionMetric(Metric):
    """Metrics of x and x_hat over n tokens, with e = x - x_hat; sums run over tokens and dimensions.

    * `fvu` = sum|e|^2 / sum|x - mean x|^2: fraction of variance unexplained, from 0, lower is better; the mean scores 1.
    * `frac_variance_explained` = 1 - fvu, up to 1, higher is better.
    * `mse` = sum|e|^2 / n, squared norm of the error per token; lower is better.
    * `l2_loss` = mean of |e|, the norm; lower is better.
    * `cossim` = mean of <x, x_hat> / (|x| |x_hat|), from -1 to 1, higher is better.
    * `l2_ratio` = mean of |x_hat| / |x|; 1 is best, less means shrinkage.
    * `relative_reconstruction_bias` = sum|x_hat|^2 / sum<x, x_hat>; 1 is best (Rajamanoharan et al. 2024, eq. 10).

    The mean of x is over all tokens, and ratios are ratios of sums, never means of the ratios of batches.
    """

    def update(self, batch: EvaluationBatch) -> None:
        x, x_hat = float64(batch.x), float64(batch.x_hat)  # (batch, activation_dim)
        error, dot = (x - x_hat).pow(2).sum(-1), (x * x_hat).sum(-1)
        norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)  # (batch,)
        tiny = torch.finfo(torch.float64).tiny
        self.add("n", len(x))
        self.add("x", x.sum(0))
        self.add("x_squared", x.pow(2).sum())
        self.add("error_squared", error.sum())
        self.add("error", error.sqrt().sum())
        self.add("cosine", (dot / (norm * norm_hat).clamp_min(tiny)).sum())
        # a token of norm 0 has no ratio; it counts as 1 where its reconstruction is 0 too
        self.add("norm_ratio", torch.where(norm > 0, norm_hat / norm.clamp_min(tiny), (norm_hat == 0).double()).sum())
        self.add("dot", dot.sum())
        self.add("x_hat_squared", x_hat.pow(2).sum())

    def compute(self) -> dict[str, float]:
        n = self.total("n")
        if not n:
            return {"n_tokens": 0}
        # sum |x - mean x|^2 = sum |x|^2 - n |mean x|^2, exact enough in float64
        variance = self.total("x_squared") - float((self.sums["x"] / n).pow(2).sum()) * n
        fvu = ratio(self.total("error_squared"), variance)
        return {
            "n_tokens": int(n),
            "fvu": fvu,
            "frac_variance_explained": 1 - fvu,
            "mse": self.total("error_squared") / n,
            "l2_loss": self.total("error") / n,
            "cossim": self.total("cosine") / n,
            "l2_ratio": self.total("norm_ratio") / n,
            "relative_reconstruction_bias": ratio(self.total("x_hat_squared"), self.total("dot")),
        }
