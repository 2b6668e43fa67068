"""How well a dictionary recovers known features."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._wrapper import innermost
from dictionary_learning.errors import ConfigError
from dictionary_learning.synthetic._data import SyntheticActivations


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Metrics of a dictionary against known features.

    A latent's feature is the one of largest |cos| with its decoder row. Shares are from 0 to 1.
    """

    n_tokens: int
    """Held-out rows that were measured."""
    mcc: float
    """Mean |cos| of decoder rows and features, matched for the largest sum; higher is better."""
    uniqueness: float
    """Number of distinct features of latents / number of latents; higher is better."""
    precision: float
    """Mean over latents of both firing / latent firing, 0 if it never fires; higher is better."""
    recall: float
    """Mean over latents of both firing / feature firing, 0 if it never fires; higher is better."""
    f1: float
    """Mean over latents of 2 both / (latent + feature firing), 0 if undefined; higher is better."""
    explained_variance: float
    """1 - sum |x - x_hat|^2 / sum |x - mean x|^2, 0 if x does not vary; higher is better."""
    l0: float
    """Mean number of non-zero latents of a row; lower is sparser."""
    dead: float
    """Share of latents that fire on none of the rows; lower is better."""
    shrinkage: float
    """Mean |x_hat| / |x| over rows with x not 0; 1 is best, less is shrunk."""


@checked()
@torch.no_grad()
def ground_truth(
    dictionary: Any, data: SyntheticActivations, *, n_tokens: int = 100_000, batch_size: int = 1024
) -> GroundTruth:
    """Measures a dictionary, in eval mode, on held-out rows; training rows do not advance.

    Args:
        dictionary: has `encode`, `decode` and `W_dec` of shape (dict_size, activation_dim), or is
            a normalization or a refinement around one that has.
        data: the activations with known features.
        n_tokens: rows in all.
        batch_size: rows at a time.

    Raises:
        ConfigError: a number is below 1, or the dictionary has no such rows.
    """
    (found,) = ground_truths([dictionary], data, n_tokens=n_tokens, batch_size=batch_size)
    if isinstance(found, ConfigError):
        raise found
    return found


@torch.no_grad()
def ground_truths(
    dictionaries: Sequence[Any], data: SyntheticActivations, *, n_tokens: int = 100_000, batch_size: int = 1024
) -> list[GroundTruth | ConfigError]:
    """Measures several dictionaries on the same held-out rows, which are drawn once.

    Returns:
        The figures of each; the error in their place where it cannot be measured.
    """
    if n_tokens < 1 or batch_size < 1:
        raise ConfigError(f"n_tokens={n_tokens} and batch_size={batch_size} must be at least 1.")
    found = dict[int, GroundTruth | ConfigError]()
    tallies = dict[int, _Tally]()
    for number, dictionary in enumerate(dictionaries):
        try:
            tallies[number] = _Tally(dictionary, data)
        except ConfigError as error:
            found[number] = error
    for x, coefficients in data.held_out(n_tokens, batch_size) if tallies else ():
        for number, tally in [*tallies.items()]:
            try:
                tally.add(x, coefficients)
            except ConfigError as error:
                found[number] = error
                del tallies[number]
    found |= {number: tally.result(n_tokens) for number, tally in tallies.items()}
    return [found[number] for number in range(len(dictionaries))]


class _Tally:
    """Sums over held-out rows, from which the figures of one dictionary are computed."""

    def __init__(self, dictionary: Any, data: SyntheticActivations):
        self.dictionary, self.bias = dictionary, data.bias.double()
        # factors of a token are the same for all its latents; refinement leaves directions alone
        inner = innermost(dictionary)
        rows, width = getattr(inner, "W_dec", None), data.config.activation_dim
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != width:
            raise ConfigError(
                f"A {type(inner).__name__} has no decoder rows of width {width} to compare with features. Give an "
                "autoencoder of these activations."
            )
        self.cosines = cosine_similarities(rows, data.features)  # (dict_size, n_features)
        self.best = self.cosines.argmax(dim=1)  # (dict_size,): the feature of each latent
        like: dict[str, Any] = {"dtype": torch.float64, "device": data.device}
        self.fires, self.feature_fires, self.both = (torch.zeros(len(rows), **like) for _ in range(3))
        self.total, self.squares, self.error = torch.zeros(width, **like), 0.0, 0.0
        self.ratios, self.n_ratios = 0.0, 0

    def add(self, x: Float[Tensor, "batch dim"], coefficients: Float[Tensor, "batch n_features"]) -> None:
        """Adds rows."""
        latents = self.dictionary.encode(x)  # (batch, dict_size)
        takes_x = isinstance(self.dictionary, Dictionary)  # others may have no more than `encode` and `decode`
        x_hat = self.dictionary.decode_with(latents, x) if takes_x else self.dictionary.decode(latents)
        x_hat = x_hat.double()
        # both (batch, dict_size): whether a latent fires, and whether its feature is present
        active, present, x = latents != 0, coefficients[:, self.best] > 0, x.double()
        self.fires += active.sum(dim=0)
        self.feature_fires += present.sum(dim=0)
        self.both += (active & present).sum(dim=0)
        # sums about the bias, which is near the mean: the subtraction at the end then cancels less
        centered = x - self.bias
        self.total += centered.sum(dim=0)
        self.squares += float(centered.square().sum())
        self.error += float((x - x_hat).square().sum())
        norms = x.norm(dim=1)
        self.ratios += float((x_hat.norm(dim=1) / norms)[norms > 0].sum())
        self.n_ratios += int((norms > 0).sum())

    def result(self, n_tokens: int) -> GroundTruth:
        """Returns the figures."""
        variance = self.squares - float(self.total.square().sum()) / n_tokens
        return GroundTruth(
            n_tokens=n_tokens,
            mcc=matched_mean(self.cosines),
            uniqueness=len(self.best.unique()) / len(self.best),
            precision=_mean_ratio(self.both, self.fires),
            recall=_mean_ratio(self.both, self.feature_fires),
            f1=_mean_ratio(2 * self.both, self.fires + self.feature_fires),
            explained_variance=1 - self.error / variance if variance > 0 else 0.0,
            l0=float(self.fires.sum()) / n_tokens,
            dead=float((self.fires == 0).double().mean()),
            shrinkage=self.ratios / self.n_ratios if self.n_ratios else 0.0,
        )


def cosine_similarities(
    rows: Float[Tensor, "dict_size dim"], features: Float[Tensor, "n_features dim"]
) -> Float[Tensor, "dict_size n_features"]:
    """Returns |cos| of every row with every feature; 0 for a row of zeros."""
    return (normalize(rows.float(), dim=1) @ normalize(features.float(), dim=1).T).abs()


def matched_mean(similarities: Float[Tensor, "rows columns"]) -> float:
    """Returns the mean similarity of the one-to-one matching with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    table = similarities.detach().double().cpu().numpy()
    return float(table[linear_sum_assignment(table, maximize=True)].mean())


def _mean_ratio(above: Float[Tensor, "dict_size"], below: Float[Tensor, "dict_size"]) -> float:
    # the denominators are counts, and above is 0 where they are
    return float((above / below.clamp_min(1)).mean())
