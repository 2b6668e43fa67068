"""Metrics of one dictionary on activations, without a model."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._metrics import METRICS, EvaluationBatch
from dictionary_learning.evaluation._sparsity import SparsityMetric
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
    if n_batches == 0:
        raise ConfigError("Got n_batches=0; give at least 1, or None to read all.")
    check_finite(dictionary, f"The {type(dictionary).__name__}")
    rows = (_of_one_site(x).to(dictionary.device, dictionary.dtype) for x in islice(iter(activations), n_batches))
    rows = (x * scale_of_batch(x) if normalize_batch else x for x in rows)
    found = measure_rows(dictionary, ((x, x) for x in rows))
    if found.density is None:
        bad = found.n_nonfinite
        got = f"{bad} rows, each with a NaN or an infinity" if bad else "no activations"
        raise DataError(f"Got {got} to evaluate on. Give at least one batch of finite activations.")
    return {**found.figures, "n_tokens_nonfinite": found.n_nonfinite}


class MeasuredRows(NamedTuple):
    """What a dictionary makes of rows of activations."""

    figures: dict[str, float]
    """Those of `METRICS`."""
    density: dict[str, Any] | None
    """The histogram of `SparsityMetric.density`; None where no row is finite."""
    n_nonfinite: int
    """Rows that were left out for a NaN or an infinity."""


@torch.no_grad()
def measure_rows(dictionary: Dictionary, batches: Iterable[tuple[Tensor, Tensor]]) -> MeasuredRows:
    """Measures a dictionary on batches of (what it reads, what it writes), where it is.

    A batch is one context for a dictionary that reads contexts.
    """
    metrics = {name: metric() for name, metric in METRICS.items()}
    n_nonfinite = 0
    for batch in batches:
        x, y = (one.to(dictionary.device, dictionary.dtype) for one in batch)
        finite = x.isfinite().all(dim=-1) & y.isfinite().all(dim=-1)  # (batch,)
        n_nonfinite += int((~finite).sum())
        x, y = x[finite], y[finite]
        if not len(x):
            continue
        reconstruction = dictionary.reconstruct(x)
        for metric in metrics.values():
            metric.update(EvaluationBatch(y, reconstruction.outputs, reconstruction.latents))
    figures = {key: value for metric in metrics.values() for key, value in metric.compute().items()}
    sparsity = cast(SparsityMetric, metrics["sparsity"])
    return MeasuredRows(figures, sparsity.density() if sparsity.total("n") else None, n_nonfinite)


def _of_one_site(x: Tensor | Mapping[Site, Tensor]) -> Tensor:
    """Returns a batch if it is of one site.

    Raises:
        DataError: it is of several.
    """
    if not isinstance(x, Tensor):
        raise DataError(
            f"Got a batch of type {type(x).__name__}; a tensor (batch, activation_dim) of one site is needed. "
            "Use evaluate_dictionaries for several sites."
        )
    if x.ndim == 1:  # a table, whose rows were taken for batches
        needed = "batches (batch, activation_dim) are needed. Of a table of rows, give activations.split(2048)."
        raise DataError(f"Got a batch of shape {tuple(x.shape)}; {needed}")
    if x.ndim != 2:
        raise DataError(
            f"Got a batch of shape {tuple(x.shape)}; (batch, activation_dim) of one site is needed. Of both sides "
            "of a module, as io='in_and_out' gives them, choose one: batch[:, 0] or batch[:, 1]. Measure a "
            "transcoder by evaluate_dictionaries."
        )
    return x


def scale_of_batch(x: Float[Tensor, "batch activation_dim"]) -> float:
    """Returns the factor that gives the finite rows a mean norm of sqrt(activation_dim)."""
    norms = x.norm(dim=-1)
    return float(x.shape[-1] ** 0.5 / norms[norms.isfinite()].mean())


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
