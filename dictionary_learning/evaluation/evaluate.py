"""Evaluation of one dictionary, by the functions and keys that scripts know."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.data import TokenBatch, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.base import METRICS, EvaluationBatch
from dictionary_learning.evaluation.fidelity import FidelityMetric, recovered
from dictionary_learning.interventions import ablate, graft
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.predictions import Predictions
from dictionary_learning.sites import Site

Grafts = Callable[[Dictionary, Tensor], Edit]
"""Makes the edit that puts a dictionary's reconstruction in place of the tokens that count."""


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    activations: Any,
    max_len: int = 128,
    batch_size: int = 128,
    io: str = "out",
    normalize_batch: bool = False,
    tracer_args: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    n_batches: int = 1,
) -> dict[str, float]:
    """Returns the figures of a dictionary on batches of activations, and on text if a buffer gives them.

    Args:
        dictionary: the dictionary.
        activations: an iterable of tensors (batch, activation_dim), or an `ActivationBuffer` over one site, from whose
            text the losses are measured too, on tokens that were not yet read.
        max_len: the longest context, with a buffer; cut to this.
        batch_size: contexts for the losses, with a buffer.
        io: taken for the sake of older scripts; a buffer knows its side.
        normalize_batch: scales each batch to a mean norm of sqrt(activation_dim), and reconstructions back.
        tracer_args: taken for the sake of older scripts.
        device: where to evaluate; where the dictionary is, if not given.
        n_batches: how many batches.

    Returns:
        `l2_loss`, `l1_loss`, `l0`, `frac_variance_explained`, `fvu`, `mse`, `cossim`, `l2_ratio`, `relative_reconstruction_bias`,
        `frac_alive`, `n_alive`, `n_tokens`, and with a buffer `loss_original`, `loss_reconstructed`, `loss_zero`, `frac_recovered`
        and `kl`. `ReconstructionMetric` and `SparsityMetric` define them.

    Raises:
        DataError: there are no activations, or they are of several sites.
        ConfigError: the dictionary reads contexts, and the activations come shuffled.
    """
    if dictionary.reads_contexts and hasattr(activations, "sites"):
        raise ConfigError(
            f"A {type(dictionary).__name__} reads whole contexts, and a {type(activations).__name__} gives tokens out of order. "
            "Use evaluate_dictionaries, or give contexts (ctx, activation_dim) one by one."
        )
    dictionary = dictionary.to(device) if device is not None else dictionary
    metrics = [metric() for _, metric in METRICS.items()]
    n_read = 0
    for x in islice(iter(activations), n_batches):
        if not isinstance(x, Tensor):
            raise DataError(
                f"The activations come as {type(x).__name__}; evaluate takes one site. Use evaluate_dictionaries for several."
            )
        x = x.to(dictionary.device, dictionary.dtype)
        scale = _batch_scale(x) if normalize_batch else 1.0
        reconstruction = dictionary.reconstruct(x * scale)
        for metric in metrics:
            metric.update(EvaluationBatch(x, reconstruction.outputs / scale, reconstruction.latents))
        n_read += len(x)
    if not n_read:
        raise DataError("There were no activations to evaluate on. Give at least one batch that is not empty.")
    figures = {key: value for metric in metrics for key, value in metric.compute().items()}
    if isinstance(activations, ActivationBuffer) and len(activations.sites) == 1:
        tokens = activations.tokenized_batch(batch_size)
        tokens = TokenBatch(tokens.input_ids[:, :max_len], tokens.attention_mask[:, :max_len])
        figures.update(
            _losses(
                activations.model,
                activations.sites[0],
                dictionary,
                tokens,
                activations.filter,
                _grafts(normalize_batch),
            )
        )
    return figures


@torch.no_grad()
def loss_recovered(
    text: Any,
    model: Any,
    submodule: Any,
    dictionary: Dictionary,
    max_len: int | None = None,
    normalize_batch: bool = False,
    io: str = "out",
    tracer_args: dict[str, Any] | None = None,
) -> tuple[float, float, float]:
    """Returns the cross-entropy of the model untouched, with the dictionary grafted in, and with the site set to zero.

    Args:
        text: strings, or a `TokenBatch`.
        model: the language model.
        submodule: the module or site that the dictionary belongs to.
        dictionary: the dictionary.
        max_len: the longest context.
        normalize_batch: as in `evaluate`.
        io: the side of the submodule, where it is given without one.
        tracer_args: taken for the sake of older scripts.
    """
    traced = load_model(model)
    site = traced.sites(submodule, "in" if io == "in" else "out")[0]
    ids: tuple[int, ...] = ()
    if not isinstance(text, TokenBatch):
        texts = [text] if isinstance(text, str) else text
        stream = as_token_stream(texts, traced.tokenizer, ctx_len=max_len or 128, model=traced, pack=False)
        ids = stream.special_ids
        batches = list(stream.batches(8))
    else:
        batches = [text]
    token_filter = TokenFilter(exclude_ids=ids, exclude_first=True)
    sums = [FidelityMetric(), FidelityMetric(), FidelityMetric()]
    for tokens in batches:
        measured = _measure(traced, site, dictionary, tokens, token_filter, _grafts(normalize_batch))
        for total, part in zip(sums, measured, strict=True):
            total.merge(part)
    return sums[0].ce, sums[1].ce, sums[2].ce


def _losses(
    model: TracedModel,
    site: Site,
    dictionary: Dictionary,
    tokens: TokenBatch,
    token_filter: TokenFilter,
    put_in: Grafts,
) -> dict[str, float]:
    clean, grafted, zero = (FidelityMetric() for _ in range(3))
    for part in _split(tokens):
        measured = _measure(model, site, dictionary, part, token_filter, put_in)
        for total, one in zip((clean, grafted, zero), measured, strict=True):
            total.merge(one)
    return {
        "loss_original": clean.ce,
        "loss_reconstructed": grafted.ce,
        "loss_zero": zero.ce,
        "frac_recovered": recovered(clean.ce, grafted.ce, zero.ce),
        "kl": grafted.kl,
    }


def _measure(
    model: TracedModel,
    site: Site,
    dictionary: Dictionary,
    tokens: TokenBatch,
    token_filter: TokenFilter,
    put_in: Grafts,
) -> tuple[FidelityMetric, FidelityMetric, FidelityMetric]:
    clean, grafted, zero = (FidelityMetric() for _ in range(3))
    keep = token_filter.token_mask(tokens)
    predictions = Predictions(model.run(*tokens), tokens, keep)
    clean.update(predictions)
    edits: tuple[tuple[FidelityMetric, Edit], ...] = ((grafted, put_in(dictionary, keep)), (zero, ablate(0.0, keep)))
    for metric, edit in edits:
        metric.update(predictions, model.run(*tokens, {site: edit}))
    return clean, grafted, zero


def _split(tokens: TokenBatch, contexts: int = 8) -> Iterator[TokenBatch]:
    """Splits a batch: logits are large, and only those of one part are held at a time."""
    for ids, mask in zip(tokens.input_ids.split(contexts), tokens.attention_mask.split(contexts), strict=True):
        yield TokenBatch(ids, mask)


def _batch_scale(x: Tensor) -> float:
    return float(x.shape[-1] ** 0.5 / x.norm(dim=-1).mean())


def _grafts(normalize_batch: bool) -> Grafts:
    return _graft_scaled if normalize_batch else graft


def _graft_scaled(dictionary: Dictionary, keep: Tensor) -> Edit:
    """Grafts a dictionary of activations that are scaled to a mean norm of sqrt(activation_dim), batch by batch."""

    def edit(x: Tensor) -> Tensor:
        inside, kept = x.to(dictionary.device, dictionary.dtype), keep.to(dictionary.device)
        scale = _batch_scale(inside[kept])
        y = graft(dictionary, kept)(inside * scale)
        assert y is not None
        return torch.where(keep.to(x.device).unsqueeze(-1), (y / scale).to(x.device, x.dtype), x)

    return edit
