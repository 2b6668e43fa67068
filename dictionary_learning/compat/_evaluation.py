"""dictionary-learning 0.1's functions of evaluation: its arguments by position, its keys and units.

New code measures a dictionary on a model and text by `evaluate_dictionaries`, and on activations
alone by `evaluate_activations`.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._hardware import as_device
from dictionary_learning._types import TextLike
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._fidelity import FidelityMetric, recovered
from dictionary_learning.evaluation._on_activations import evaluate_activations, scale_of_batch
from dictionary_learning.interventions import ablate, graft
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

_CONTEXTS = 8
"""Contexts of which the logits are in memory at a time."""


@checked()
@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    activations: Iterable[Tensor | Mapping[Site, Tensor]],
    max_len: int = 128,
    batch_size: int = 128,
    io: Literal["in", "out", "in_and_out"] = "out",
    normalize_batch: bool = False,
    tracer_args: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    n_batches: int = 1,
) -> dict[str, float]:
    """Returns a dictionary's metrics on activations and, with a buffer, the model's losses on text.

    Args:
        dictionary: it is not moved.
        activations: tensors (batch, activation_dim), or an `ActivationBuffer` over one site. A
            buffer also provides text that was not read yet, on which the losses are measured.
        max_len: the longest context for the losses.
        batch_size: contexts for the losses.
        io: ignored, as `tracer_args`: a buffer knows its side.
        normalize_batch: as in `evaluate_activations`.
        device: where to evaluate; by default where the dictionary is.

    Returns:
        The metrics of `evaluate_activations`; with a buffer also `loss_original`,
        `loss_reconstructed`, `loss_zero`, `frac_recovered` and `kl`.

    Raises:
        DataError: there are no activations, or they are of several sites.
        ConfigError: the dictionary reads contexts and the activations come shuffled, or it holds a
            NaN.
    """
    if dictionary.reads_contexts and hasattr(activations, "sites"):
        raise ConfigError(
            f"A {type(dictionary).__name__} reads whole contexts, and a {type(activations).__name__} returns shuffled "
            "tokens. Use evaluate_dictionaries, or give contexts (ctx, activation_dim) one by one."
        )
    if device is not None and as_device(device) != dictionary.device:
        dictionary = copy.deepcopy(dictionary).to(device)
    metrics = evaluate_activations(dictionary, activations, n_batches=n_batches, normalize_batch=normalize_batch)
    if isinstance(activations, ActivationBuffer) and len(activations.sites) == 1:
        tokens = activations.tokenized_batch(batch_size)
        ids, mask = (part[:, :max_len].split(_CONTEXTS) for part in tokens)
        parts = map(TokenBatch, ids, mask)
        clean, spliced, zero = _losses(
            activations.model, activations.sites[0], dictionary, parts, activations.filter, normalize_batch
        )
        metrics["loss_original"], metrics["loss_reconstructed"], metrics["loss_zero"] = clean.ce, spliced.ce, zero.ce
        metrics["frac_recovered"] = recovered(clean.ce, spliced.ce, zero.ce)
        metrics["kl"] = spliced.kl
    return metrics


@checked()
@torch.no_grad()
def loss_recovered(
    text: TextLike | TokenBatch,
    model: Any,
    submodule: Any,
    dictionary: Dictionary,
    max_len: int | None = None,
    normalize_batch: bool = False,
    io: Literal["in", "out", "in_and_out"] = "out",
    tracer_args: dict[str, Any] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the model's cross-entropy as it is, with the dictionary spliced in, and with zeros.

    Args:
        text: strings, or a `TokenBatch`.
        submodule: the module or site of the dictionary.
        max_len: the longest context; 128 by default.
        normalize_batch: as in `evaluate_activations`.
        io: the side of a submodule that names none.
        tracer_args: ignored.
    """
    traced = load_model(model)
    site = traced.sites(submodule, "in" if io == "in" else "out")[0]
    special_ids: tuple[int, ...] = ()
    if isinstance(text, TokenBatch):
        batches: Iterable[TokenBatch] = [text]
    else:
        texts = [text] if isinstance(text, str) else text
        # a stream has made its contexts
        own = {"ctx_len": max_len or getattr(text, "ctx_len", 128), "pack": getattr(text, "pack", False)}
        stream = as_token_stream(texts, traced.tokenizer, model=traced, **own)
        special_ids, batches = stream.special_ids, stream.batches(_CONTEXTS)
    token_filter = TokenFilter(exclude_ids=special_ids, exclude_first=True)
    clean, spliced, zero = _losses(traced, site, dictionary, batches, token_filter, normalize_batch)
    if not clean.n:
        raise DataError(f"Got text={short(text)}, in which no token is predicted from another. Give more text.")
    clean_ce, spliced_ce, zero_ce = (torch.tensor(each.ce, dtype=torch.float64) for each in (clean, spliced, zero))
    return clean_ce, spliced_ce, zero_ce


def _losses(
    model: TracedModel,
    site: Site,
    dictionary: Dictionary,
    batches: Iterable[TokenBatch],
    token_filter: TokenFilter,
    normalize_batch: bool,
) -> tuple[FidelityMetric, FidelityMetric, FidelityMetric]:
    clean, spliced, zero = FidelityMetric(), FidelityMetric(), FidelityMetric()
    for tokens in batches:
        keep = token_filter.token_mask(tokens)  # (batch, ctx)
        predictions = Predictions(model.run(*tokens), tokens, keep)
        clean.update(predictions)
        spliced.update(
            predictions, model.run(*tokens, {site: _splice(dictionary, keep, normalize_batch)}, special_tokens=True)
        )
        zero.update(predictions, model.run(*tokens, {site: ablate(0.0, keep)}, special_tokens=True))
    return clean, spliced, zero


def _splice(dictionary: Dictionary, keep: Tensor, normalize_batch: bool) -> Edit:
    """Replaces the tokens that are kept by their reconstruction.

    With `normalize_batch` the dictionary is one of activations whose mean norm is
    sqrt(activation_dim) in each batch.
    """
    if not normalize_batch:
        return graft(dictionary, keep)

    def edit(x: Tensor) -> Tensor:
        inside, kept = x.to(dictionary.device, dictionary.dtype), keep.to(dictionary.device)
        scale = scale_of_batch(inside[kept])  # of the tokens that count, as in `evaluate_activations`
        y = graft(dictionary, kept)(inside * scale)
        assert y is not None, "a graft returns new activations"
        return torch.where(keep.to(x.device).unsqueeze(-1), (y / scale).to(x.device, x.dtype), x)

    return edit
