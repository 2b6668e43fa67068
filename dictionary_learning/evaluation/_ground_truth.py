"""How well a dictionary recovers known features."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictionary_learning.errors import ConfigError
from dictionary_learning.synthetic import SyntheticActivations


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


@torch.no_grad()
def ground_truth(
    dictionary: Any, data: SyntheticActivations, *, n_tokens: int = 100_000, batch_size: int = 1024
) -> GroundTruth:
    """Measures a dictionary, in eval mode, on held-out rows; training rows do not advance.

    Args:
        dictionary: has `encode`, `decode` and `W_dec` of shape (dict_size, activation_dim).
        data: the activations with known features.
        n_tokens: rows in all.
        batch_size: rows at a time.

    Raises:
        ConfigError: a number is below 1.
    """
    if n_tokens < 1 or batch_size < 1:
        raise ConfigError(f"n_tokens={n_tokens} and batch_size={batch_size} must be at least 1.")
    cosines = cosine_similarities(dictionary.W_dec, data.features)  # (dict_size, n_features)
    best = cosines.argmax(dim=1)  # (dict_size,): the feature of each latent
    like: dict[str, Any] = {"dtype": torch.float64, "device": data.device}
    fires, feature_fires, both = (torch.zeros(len(best), **like) for _ in range(3))  # (dict_size,) each
    total, squares, error, ratios = torch.zeros(data.config.activation_dim, **like), 0.0, 0.0, 0.0
    n_ratios = 0
    for x, coefficients in data.held_out(n_tokens, batch_size):
        latents = dictionary.encode(x)  # (batch, dict_size)
        x_hat = dictionary.decode(latents).double()
        # both (batch, dict_size): whether a latent fires, and whether its feature is present
        active, present, x = latents != 0, coefficients[:, best] > 0, x.double()
        fires += active.sum(dim=0)
        feature_fires += present.sum(dim=0)
        both += (active & present).sum(dim=0)
        # sums about the bias, which is near the mean: the subtraction at the end then cancels less
        centered = x - data.bias.double()
        total += centered.sum(dim=0)
        squares += float(centered.square().sum())
        error += float((x - x_hat).square().sum())
        norms = x.norm(dim=1)
        ratios += float((x_hat.norm(dim=1) / norms)[norms > 0].sum())
        n_ratios += int((norms > 0).sum())
    variance = squares - float(total.square().sum()) / n_tokens
    return GroundTruth(
        n_tokens=n_tokens,
        mcc=matched_mean(cosines),
        uniqueness=len(best.unique()) / len(best),
        precision=_mean_ratio(both, fires),
        recall=_mean_ratio(both, feature_fires),
        f1=_mean_ratio(2 * both, fires + feature_fires),
        explained_variance=1 - error / variance if variance > 0 else 0.0,
        l0=float(fires.sum()) / n_tokens,
        dead=float((fires == 0).double().mean()),
        shrinkage=ratios / n_ratios if n_ratios else 0.0,
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
