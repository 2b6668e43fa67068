"""dictionary-learning 0.1's functions of evaluation: its arguments by position, its keys and units.

New code measures a dictionary on a model and text by `evaluate_dictionaries`, and on activations alone by `evaluate_activations`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._types import TextLike
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._fidelity import FidelityMetric, recovered
from dictionary_learning.evaluation._on_activations import evaluate_activations, scale_of_batch
from dictionary_learning.interventions import ablate, graft
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

_Splice = Callable[[Dictionary, Tensor], Edit]
"""Returns the edit that replaces the tokens in a mask by a dictionary's reconstruction."""


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    activations: Iterable[Tensor | Mapping[Site, Tensor]],
    max_len: int = 128,
    batch_size: int = 128,
    io: str = "out",
    normalize_batch: bool = False,
    tracer_args: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    n_batches: int = 1,
) -> dict[str, float]:
    """Returns the metrics of a dictionary on batches of activations and, with a buffer, the model's losses on its text.

    Args:
        dictionary: the dictionary; it is not moved.
        activations: tensors (batch, activation_dim), or an `ActivationBuffer` over one site. A buffer also provides
            text that was not read yet, on which the losses are measured.
        max_len: the longest context for the losses.
        batch_size: contexts for the losses.
        io: ignored: a buffer knows its side.
        normalize_batch: as in `evaluate_activations`.
        tracer_args: ignored.
        device: where to evaluate; by default where the dictionary is.
        n_batches: how many batches.

    Returns:
        The metrics of `evaluate_activations`; with a buffer also `loss_original`, `loss_reconstructed`, `loss_zero`,
        `frac_recovered` and `kl`.

    Raises:
        DataError: there are no activations, or they are of several sites.
        ConfigError: the dictionary reads contexts and the activations come shuffled, or it holds a NaN.
    """
    if dictionary.reads_contexts and hasattr(activations, "sites"):
        raise ConfigError(
            f"A {type(dictionary).__name__} reads whole contexts, and a {type(activations).__name__} returns shuffled "
            "tokens. Use evaluate_dictionaries, or give contexts (ctx, activation_dim) one by one."
        )
    if device is not None and torch.device(device) != dictionary.device:
        dictionary = copy.deepcopy(dictionary).to(device)
    metrics = evaluate_activations(dictionary, activations, n_batches=n_batches, normalize_batch=normalize_batch)
    if isinstance(activations, ActivationBuffer) and len(activations.sites) == 1:
        tokens = activations.tokenized_batch(batch_size)
        parts = _split(TokenBatch(tokens.input_ids[:, :max_len], tokens.attention_mask[:, :max_len]))
        model, site, token_filter = activations.model, activations.sites[0], activations.filter
        clean, spliced, zero = _losses(model, site, dictionary, parts, token_filter, _splice(normalize_batch))
        metrics["loss_original"], metrics["loss_reconstructed"], metrics["loss_zero"] = clean.ce, spliced.ce, zero.ce
        metrics["frac_recovered"] = recovered(clean.ce, spliced.ce, zero.ce)
        metrics["kl"] = spliced.kl
    return metrics


@torch.no_grad()
def loss_recovered(
    text: TextLike | TokenBatch,
    model: Any,
    submodule: Any,
    dictionary: Dictionary,
    max_len: int | None = None,
    normalize_batch: bool = False,
    io: str = "out",
    tracer_args: dict[str, Any] | None = None,
) -> tuple[float, float, float]:
    """Returns the model's cross-entropy without a change, with the dictionary spliced in, and with the site set to zero.

    Args:
        text: strings, or a `TokenBatch`.
        model: the language model.
        submodule: the module or site of the dictionary.
        dictionary: the dictionary.
        max_len: the longest context.
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
        stream = as_token_stream(texts, traced.tokenizer, ctx_len=max_len or 128, model=traced, pack=False)
        special_ids, batches = stream.special_ids, stream.batches(8)
    token_filter = TokenFilter(exclude_ids=special_ids, exclude_first=True)
    clean, spliced, zero = _losses(traced, site, dictionary, batches, token_filter, _splice(normalize_batch))
    return clean.ce, spliced.ce, zero.ce


def _losses(
    model: TracedModel,
    site: Site,
    dictionary: Dictionary,
    batches: Iterable[TokenBatch],
    token_filter: TokenFilter,
    splice: _Splice,
) -> tuple[FidelityMetric, FidelityMetric, FidelityMetric]:
    clean, spliced, zero = FidelityMetric(), FidelityMetric(), FidelityMetric()
    for tokens in batches:
        keep = token_filter.token_mask(tokens)  # (batch, ctx)
        predictions = Predictions(model.run(*tokens), tokens, keep)
        clean.update(predictions)
        spliced.update(predictions, model.run(*tokens, {site: splice(dictionary, keep)}))
        zero.update(predictions, model.run(*tokens, {site: ablate(0.0, keep)}))
    return clean, spliced, zero


def _split(tokens: TokenBatch, contexts: int = 8) -> Iterator[TokenBatch]:
    """Splits a batch, so that only the logits of one part are in memory at a time."""
    for ids, mask in zip(tokens.input_ids.split(contexts), tokens.attention_mask.split(contexts), strict=True):
        yield TokenBatch(ids, mask)


def _splice(normalize_batch: bool) -> _Splice:
    return _splice_normalized if normalize_batch else graft


def _splice_normalized(dictionary: Dictionary, keep: Tensor) -> Edit:
    """Splices in a dictionary of activations whose mean norm is sqrt(activation_dim) in each batch."""

    def edit(x: Tensor) -> Tensor:
        inside, kept = x.to(dictionary.device, dictionary.dtype), keep.to(dictionary.device)
        scale = scale_of_batch(inside[kept])  # of the tokens that count, as in `evaluate_activations`
        y = graft(dictionary, kept)(inside * scale)
        assert y is not None
        return torch.where(keep.to(x.device).unsqueeze(-1), (y / scale).to(x.device, x.dtype), x)

    return edit
