"""Figures as other packages compute them, for comparison with what they publish.

They differ in which tokens count, in what a ratio is a ratio of, and by mistakes. The formulas are
in docs/evaluation.md. Nothing of this enters a canonical figure. Where a package averages over its
batches, so does this: its figures depend on the batch size.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.config import Registry
from dictionary_learning.data import TokenBatch
from dictionary_learning.evaluation._fidelity import recovered
from dictionary_learning.latents import Latents, firing_counts, to_dense

ConventionName: TypeAlias = Literal["canonical", "dictionary_learning", "saelens", "saebench"]
_SMALL_NORM = 1e-4
"""Norm of activations below which SAELens and SAEBench divide by 1."""


class SpecialTokens(NamedTuple):
    """The ids that packages treat apart."""

    special: tuple[int, ...]
    """BOS, EOS and padding."""
    padding: int | None


class Logits(NamedTuple):
    """What the model predicts with its activations as they are, reconstructed, and set to zero."""

    clean: Float[Tensor, "batch ctx vocab"]
    spliced: Float[Tensor, "batch ctx vocab"]
    zero: Float[Tensor, "batch ctx vocab"]


class Convention(ABC):
    """The figures of one dictionary by one package's rules."""

    def __init__(self, ids: SpecialTokens):
        self.ids = ids
        self.means = _Means()

    @abstractmethod
    def counted(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Returns the tokens in the metrics of activations."""

    @abstractmethod
    def replaced(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Returns the tokens whose activations are reconstructed; all are ablated."""

    @abstractmethod
    def update(self, x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], latents: Latents) -> None:
        """Adds the activations of a batch."""

    @abstractmethod
    def update_losses(self, tokens: TokenBatch, logits: Logits) -> None:
        """Adds the predictions of a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the figures by the names that the package has for them."""


CONVENTIONS: Registry[type[Convention]] = Registry("convention")


class _Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, float]] = {}

    def add(self, value: Tensor, weight: float = 1.0, *, name: str) -> None:
        total, weights = self.sums.get(name, (value.new_zeros(()), 0.0))
        self.sums[name] = (total + weight * value.detach(), weights + weight)

    def __getitem__(self, name: str) -> Tensor:
        total, weights = self.sums[name]
        return total / weights

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def only_numbers(self) -> dict[str, float]:
        return {name: float(self[name]) for name, (total, _) in self.sums.items() if not total.ndim}


@CONVENTIONS.register("dictionary_learning")
class DictionaryLearningConvention(Convention):
    """`evaluate` of dictionary-learning 0.1: every figure is a mean over batches of their figures.

    All tokens but padding count, BOS too. The residual is centered in its variance, so a constant
    error goes unseen. Every position is reconstructed. Targets that equal the padding id are left
    out, which drops EOS where it pads.
    """

    def counted(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return tokens.attention_mask

    def replaced(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return torch.ones_like(tokens.attention_mask)

    def update(self, x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], latents: Latents) -> None:
        x, x_hat = float64(x), float64(x_hat)
        error, norm, norm_hat = x - x_hat, x.norm(dim=-1), x_hat.norm(dim=-1)
        found = {
            "l2_loss": error.norm(dim=-1).mean(),
            "l1_loss": float64(to_dense(latents)).abs().sum(-1).mean(),
            "l0": float64(firing_counts(latents)).sum() / len(x),
            "frac_variance_explained": 1 - error.var(0).sum() / x.var(0).sum(),
            "cossim": ((x * x_hat).sum(-1) / (norm * norm_hat)).mean(),
            "l2_ratio": (norm_hat / norm).mean(),
            "relative_reconstruction_bias": norm_hat.square().mean() / (x * x_hat).sum(-1).mean(),
            "fired": float64(firing_counts(latents)),
        }
        for name, value in found.items():
            self.means.add(value, name=name)

    def update_losses(self, tokens: TokenBatch, logits: Logits) -> None:
        targets, mask = tokens.input_ids[:, 1:].cpu(), tokens.attention_mask[:, 1:].cpu()
        if self.ids.padding is not None:
            mask = mask & (targets != self.ids.padding)
        clean, spliced, zero = (_cross_entropy(one, tokens)[mask].mean() for one in logits)
        found = {"loss_original": clean, "loss_reconstructed": spliced, "loss_zero": zero}
        found["frac_recovered"] = (spliced - zero) / (clean - zero)
        for name, value in found.items():
            self.means.add(value, name=name)

    def compute(self) -> dict[str, float]:
        return {**self.means.only_numbers(), "frac_alive": float((self.means["fired"] > 0).double().mean())}


@CONVENTIONS.register("saelens")
class SaeLensConvention(Convention):
    """`run_evals` of SAELens 6 with its defaults.

    BOS, EOS and padding are neither reconstructed nor counted. Zero ablation is at all positions. A
    loss counts where its input token does. Most figures are means over tokens.
    """

    def counted(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return _ordinary(tokens, self.ids)

    def replaced(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return _ordinary(tokens, self.ids)

    def update(self, x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], latents: Latents) -> None:
        x, x_hat = float64(x), float64(x_hat)
        error = (x - x_hat).square().sum(-1)  # (n,)
        found = _common_figures(x, x_hat, latents)
        found |= {"mse": error.mean(), "x": x.mean(0), "l1": float64(to_dense(latents)).abs().sum(-1).mean()}
        for name, value in found.items():
            self.means.add(value, len(x), name=name)
        _add_bias(self.means, x, x_hat)

    def update_losses(self, tokens: TokenBatch, logits: Logits) -> None:
        _add_losses(self.means, tokens, logits, _ordinary(tokens, self.ids).cpu(), "log_softmax")

    def compute(self) -> dict[str, float]:
        figures = self.means.only_numbers()
        total = figures.pop("x_squared") - float(self.means["x"].square().sum())
        figures["explained_variance"] = 1 - figures["mse"] / total
        return figures | _scores(figures)


@CONVENTIONS.register("saebench")
class SaeBenchConvention(Convention):
    """The core evaluation of SAEBench 0.6 with its defaults, its mistakes included.

    * `explained_variance` subtracts (E|x|^2 / d)^2 where |E x|^2 is meant: it changes with the
      scale of the activations.
    * `mse` is divided by the number of tokens twice.
    * `l1` sums latents with their sign.
    * KL is computed from log(softmax), and is NaN or infinite where a probability underflows.

    Special tokens are reconstructed, and not counted.
    """

    def counted(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return _ordinary(tokens, self.ids)

    def replaced(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        return torch.ones_like(tokens.attention_mask)

    def update(self, x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], latents: Latents) -> None:
        x, x_hat = float64(x), float64(x_hat)
        error = (x - x_hat).square().sum(-1)  # (n,)
        found = _common_figures(x, x_hat, latents)
        found |= {"error": error.mean(), "l1": float64(to_dense(latents)).sum(-1).mean()}
        found |= {"mse": (error / len(x)).mean(), "density": float64(firing_counts(latents)) / len(x)}
        found["mean_square"] = x.square().mean()  # where SAEBench means the mean of each dimension
        for name, value in found.items():
            self.means.add(value, len(x), name=name)
        _add_bias(self.means, x, x_hat)

    def update_losses(self, tokens: TokenBatch, logits: Logits) -> None:
        _add_losses(self.means, tokens, logits, _ordinary(tokens, self.ids).cpu(), "log of softmax")

    def compute(self) -> dict[str, float]:
        figures, density = self.means.only_numbers(), self.means["density"]
        total = figures.pop("x_squared") - figures.pop("mean_square") ** 2
        figures["explained_variance"] = 1 - figures.pop("error") / total
        figures["frac_alive"] = float((density > 0).double().mean())
        figures["freq_over_1_percent"] = float((density > 0.01).double().mean())
        figures["freq_over_10_percent"] = float((density > 0.1).double().mean())
        return figures | _scores(figures)


def _ordinary(tokens: TokenBatch, ids: SpecialTokens) -> Bool[Tensor, "batch ctx"]:
    return tokens.attention_mask & ~torch.isin(tokens.input_ids.cpu(), torch.tensor(ids.special, dtype=torch.long))


def _common_figures(x: Tensor, x_hat: Tensor, latents: Latents) -> dict[str, Tensor]:
    """Returns the means over tokens that SAELens and SAEBench define alike."""
    norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)  # (n,)
    error = (x - x_hat).square().sum(-1)
    return {
        "l0": float64(firing_counts(latents)).sum() / len(x),
        "l2_norm_in": norm.mean(),
        "l2_norm_out": norm_hat.mean(),
        "l2_ratio": (norm_hat / norm.where(norm >= _SMALL_NORM, torch.ones_like(norm))).mean(),
        "cossim": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean(),
        # a mean of ratios, to the mean of the batch
        "explained_variance_legacy": (1 - error / (x - x.mean(0)).square().sum(-1)).mean(),
        "x_squared": x.square().sum(-1).mean(),
    }


def _add_bias(means: _Means, x: Tensor, x_hat: Tensor) -> None:
    bias = x_hat.square().sum(-1).mean() / (x * x_hat).sum(-1).mean()
    means.add(bias, name="relative_reconstruction_bias")  # a mean over batches, as both packages have it


def _add_losses(
    means: _Means, tokens: TokenBatch, logits: Logits, mask: Bool[Tensor, "batch ctx"], logarithm: str
) -> None:
    """Adds cross-entropies where the input token counts, and KL at every token that counts."""
    n_ce, n_kl = int(mask[:, :-1].sum()), int(mask.sum())
    names = ("ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation")
    for name, one in zip(names, logits, strict=True):
        means.add(_cross_entropy(one, tokens)[mask[:, :-1]].mean(), n_ce, name=name)
    clean = logits.clean[mask.to(logits.clean.device)].float()
    for name, one in (("kl_div_with_sae", logits.spliced), ("kl_div_with_ablation", logits.zero)):
        changed = one[mask.to(one.device)].float()  # (n, vocab)
        if logarithm == "log_softmax":
            log_p, log_q = clean.log_softmax(-1), changed.log_softmax(-1)
            terms = torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0)
        else:
            p, q = clean.softmax(-1), changed.softmax(-1)
            terms = p * (p.log() - q.log())
        means.add(float64(terms.sum(-1)).mean().cpu(), n_kl, name=name)


def _cross_entropy(logits: Float[Tensor, "batch ctx vocab"], tokens: TokenBatch) -> Float[Tensor, "batch ctx-1"]:
    log_p = logits[:, :-1].float().log_softmax(-1)
    targets = tokens.input_ids[:, 1:].to(logits.device)
    return -float64(log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).cpu()


def _scores(figures: dict[str, float]) -> dict[str, float]:
    if "ce_loss_with_sae" not in figures:
        return {}
    ce = recovered(figures["ce_loss_without_sae"], figures["ce_loss_with_sae"], figures["ce_loss_with_ablation"])
    kl = recovered(0.0, figures["kl_div_with_sae"], figures["kl_div_with_ablation"])
    return {"ce_loss_score": ce, "kl_div_score": kl}
