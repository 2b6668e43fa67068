"""Metrics of one dictionary on activations, without a model."""

from collections.abc import Iterable, Mapping
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._metrics import METRICS, EvaluationBatch
from dictionary_learning.sites import Site


@checked()
@torch.no_grad()
def evaluate_activations(
    dictionary: Dictionary,
    activations: Iterable[Tensor | Mapping[Site, Tensor]],
    *,
    n_batches: int | None = None,
    normalize_batch: bool = False,
) -> dict[str, float]:
    """Returns a dictionary's metrics on batches of activations, computed where the dictionary is.

    Rows with a NaN or an infinity are excluded and counted.

    Args:
        dictionary: the dictionary.
        activations: tensors (batch, activation_dim); for a dictionary that reads contexts, one
            context each.
        n_batches: how many batches to read; by default all.
        normalize_batch: multiplies each batch so that its mean norm is sqrt(activation_dim).
            Metrics with a unit, such as `l2_loss` and `mse`, are then of normalized activations.

    Returns:
        The metrics of `ReconstructionMetric` and `SparsityMetric`, and `n_tokens_nonfinite`.

    Raises:
        DataError: there are no activations, or they are of several sites.
        ConfigError: a tensor of the dictionary holds a NaN or an infinity.
    """
    check_finite(dictionary, f"The {type(dictionary).__name__}")
    metrics = [metric() for _, metric in METRICS.items()]
    n_read = n_nonfinite = 0
    for x in islice(iter(activations), n_batches):
        if not isinstance(x, Tensor):
            raise DataError(
                f"Got a batch of type {type(x).__name__}; a tensor (batch, activation_dim) of one site is needed. "
                "Use evaluate_dictionaries for several sites."
            )
        if x.ndim != 2:
            raise DataError(
                f"Got a batch of shape {tuple(x.shape)}; (batch, activation_dim) of one site is needed. Of both sides "
                "of a module, as io='in_and_out' gives them, choose one: batch[:, 0] or batch[:, 1]. Measure a "
                "transcoder by evaluate_dictionaries."
            )
        x = x.to(dictionary.device, dictionary.dtype)
        finite = x.isfinite().all(dim=-1)  # (batch,)
        n_nonfinite += int((~finite).sum())
        x = x[finite]
        n_read += len(x)
        if not len(x):
            continue
        if normalize_batch:
            x = x * scale_of_batch(x)
        reconstruction = dictionary.reconstruct(x)
        for metric in metrics:
            metric.update(EvaluationBatch(x, reconstruction.outputs, reconstruction.latents))
    if not n_read:
        found = f"{n_nonfinite} rows, each with a NaN or an infinity" if n_nonfinite else "no activations"
        raise DataError(f"Got {found} to evaluate on. Give at least one batch of finite activations.")
    figures = {key: value for metric in metrics for key, value in metric.compute().items()}
    return {**figures, "n_tokens_nonfinite": n_nonfinite}


def scale_of_batch(x: Float[Tensor, "batch activation_dim"]) -> float:
    """Returns the factor that gives the rows a mean norm of sqrt(activation_dim)."""
    return float(x.shape[-1] ** 0.5 / x.norm(dim=-1).mean())


def check_finite(dictionary: Dictionary, name: str) -> None:
    """Checks that no tensor holds a NaN or an infinity, which would spoil every metric.

    Raises:
        ConfigError: one does; the message names the first.
    """
    bad = nonfinite_names(dictionary)
    if bad:
        raise ConfigError(
            f"{name} holds a NaN or an infinity in {bad[0]}, so no metric of it means anything. The run that trained "
            "it diverged: train with a lower learning rate, or load an earlier checkpoint."
        )
