"""dictionary-learning's functions to look at one feature: its arguments and return values.

New code collects the contexts of all latents in one pass, and asks for the effects of latents:
`interpretation`. Errors of the originals are gone: padding is no token, the last token of a text is
its own and not that of the longest one, and `dim_idx=None` and `feat_idxs=None` work.
"""

import html
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.data import TokenBatch
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError, MissingDependencyError
from dictionary_learning.interpretation._directions import Directions
from dictionary_learning.interpretation._token_text import pieces_of, texts_alone, texts_of
from dictionary_learning.interventions import edit_latents, graft
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

_CONTEXTS = 8
"""Contexts of which the logits, or all latents, are in memory at a time."""


class TopContexts(NamedTuple):
    """Contexts up to the tokens where a feature is most active; shown in notebooks."""

    tokens: list[list[str]]
    activations: list[Tensor]
    """Of each token."""

    def _repr_html_(self) -> str:
        largest = max((float(a.max()) for a in self.activations if len(a)), default=0.0) or 1.0
        lines: list[str] = []
        for words, values in zip(self.tokens, self.activations, strict=True):
            spans = [_span(word, value, largest) for word, value in zip(words, values.tolist(), strict=True)]
            lines.append(f'<p style="white-space:pre-wrap">{"".join(spans)}</p>')
        return "".join(lines)


def _span(word: str, value: float, largest: float) -> str:
    color = f"rgba(255,140,0,{max(value, 0.0) / largest:.2f})"
    return f'<span title="{value:.3f}" style="background:{color}">{html.escape(word)}</span>'


class featureProfile(NamedTuple):
    """What `examine_dimension` returns; its name is that of dictionary-learning."""

    top_contexts: TopContexts
    top_tokens: list[tuple[str, float]]
    """Tokens with the largest mean activation."""
    top_affected: list[tuple[str, float]]
    """Next tokens that the feature makes likelier, with the log-probability that they lose."""


@checked()
@torch.no_grad()
def feature_effect(
    model: ModelLike,
    submodule: SubmodulesLike,
    dictionary: Dictionary | None,
    feature: int | Sequence[int],
    inputs: Any,
    max_length: int = 128,
    add_residual: bool = True,
    k: int = 10,
    largest: bool = True,
) -> tuple[Tensor, Tensor]:
    """Returns the next tokens that ablating a feature makes less likely, and by how much.

    Args:
        model: the language model.
        submodule: where the dictionary reads.
        dictionary: the dictionary; None for a dimension of the activations themselves.
        feature: the latents that become 0 on all tokens.
        inputs: a text, several, or lists of token ids; the token after the last one is predicted.
        max_length: tokens of each that are read.
        add_residual: whether the error of the dictionary stays; else both runs are reconstructed.
        k: how many tokens.
        largest: whether the fall is largest; else the rise.

    Returns:
        The tokens, and the falls of their log-probability, as means over the inputs.
    """
    traced, features = load_model(model), [feature] if isinstance(feature, int) else list(feature)
    (site,) = _only(traced, submodule)
    total, n = torch.zeros(()), 0
    for batch in _batches(traced, inputs, max_length):
        last = batch.attention_mask.sum(-1) - 1
        before, after = _edits(dictionary, features, add_residual, batch.attention_mask)
        clean, changed = (
            traced.run(*batch, {} if edit is None else {site: edit}, special_tokens=True) for edit in (before, after)
        )
        rows = torch.arange(len(last))
        log_p, log_q = (logits[rows, last].float().log_softmax(-1) for logits in (clean, changed))  # (batch, vocab)
        total, n = total + (log_p - log_q).sum(0).cpu(), n + len(rows)
    if k > len(total):
        raise ConfigError(f"Got k={k}, and the vocabulary has {len(total)} tokens. Lower k.")
    found = (total / n).topk(k, largest=largest)
    return found.indices, found.values


@checked()
@torch.no_grad()
def examine_dimension(
    model: ModelLike,
    submodule: SubmodulesLike,
    buffer: Any,
    dictionary: Dictionary | None = None,
    max_length: int = 128,
    n_inputs: int = 512,
    dim_idx: int | None = None,
    k: int = 30,
) -> featureProfile:
    """Returns the contexts and tokens where a feature is most active, and what it affects.

    Args:
        model: the language model.
        submodule: where the dictionary reads.
        buffer: an `ActivationBuffer`, whose next contexts are read.
        dictionary: the dictionary; None for a dimension of the activations themselves.
        max_length: tokens of each context that are read.
        n_inputs: contexts that are read.
        dim_idx: the feature; by default one at random.
        k: contexts, and tokens of each kind.
    """
    if not hasattr(buffer, "tokenized_batch"):
        raise DataError(f"Got a {type(buffer).__name__} as buffer; give an ActivationBuffer.")
    traced = load_model(model)
    (site,) = _only(traced, submodule)
    batch = buffer.tokenized_batch(batch_size=n_inputs)
    ids, mask = batch.input_ids[:, :max_length], batch.attention_mask[:, :max_length]
    width = traced.widths(site)[site] if dictionary is None else dictionary.dict_size
    dim_idx = int(torch.randint(width, ())) if dim_idx is None else dim_idx
    if not 0 <= dim_idx < width:
        raise ConfigError(f"Got dim_idx={dim_idx}; there are the features 0 to {width - 1}. Choose one of them.")
    parts = zip(ids.split(_CONTEXTS), mask.split(_CONTEXTS), strict=True)
    values = torch.cat([_values(traced, site, dictionary, dim_idx, *part) for part in parts])  # (contexts, ctx)
    kinds, number = ids[mask].unique(return_inverse=True)
    sums = torch.zeros(len(kinds)).index_add_(0, number, values[mask])
    means = sums / number.bincount()
    best = means.topk(min(k, len(means)))
    top_tokens = list(zip(_words(traced, kinds[best.indices]), best.values.tolist(), strict=True))
    flat = values.masked_fill(~mask, -torch.inf).flatten()
    places = flat.topk(min(k, int(mask.sum()))).indices.tolist()
    rows = [(place // values.shape[1], place % values.shape[1] + 1) for place in places]
    starts = [ids[row, :end][mask[row, :end]].tolist() for row, end in rows]
    shown = [values[row, :end][mask[row, :end]] for row, end in rows]
    tokens, falls = feature_effect(traced, site, dictionary, dim_idx, starts, max_length, k=k)
    top_affected = list(zip(_words(traced, tokens), falls.tolist(), strict=True))
    windows = [texts_of(traced.tokenizer, start) for start in starts]
    return featureProfile(TopContexts(windows, shown), top_tokens, top_affected)


@checked()
def feature_umap(
    dictionary: Dictionary,
    weight: Literal["decoder", "encoder"] = "decoder",
    n_neighbors: int = 15,
    metric: str = "cosine",
    min_dist: float = 0.05,
    n_components: int = 2,
    feat_idxs: int | Sequence[int] | None = None,
) -> Any:
    """Returns a plotly figure of UMAP of a dictionary's directions, in 2 or 3 dimensions.

    Needs the packages umap-learn and plotly; `latent_map` does not.

    Args:
        dictionary: the dictionary.
        weight: which directions.
        n_neighbors: of UMAP, as `metric` and `min_dist`.
        n_components: the dimensions.
        feat_idxs: features in another color.
    """
    if n_components not in (2, 3):
        raise ConfigError(f"Got n_components={n_components}; a figure has 2 or 3 dimensions. Give one of them.")
    for module, package in (("umap", "umap-learn"), ("plotly", "plotly")):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(package, "feature_umap")
    rows = Directions(dictionary, weight).rows(0, dictionary.dict_size).cpu().numpy()
    umap: Any = importlib.import_module("umap")
    express: Any = importlib.import_module("plotly.express")
    options = {"n_neighbors": n_neighbors, "metric": metric, "min_dist": min_dist, "n_components": n_components}
    placed = umap.UMAP(**options).fit_transform(rows)
    chosen = {feat_idxs} if isinstance(feat_idxs, int) else set(feat_idxs or ())
    axes = dict(zip("xyz", placed.T, strict=False))
    numbers = list(range(len(rows)))
    colors = ["chosen" if number in chosen else "others" for number in numbers] if chosen else None
    return (express.scatter if n_components == 2 else express.scatter_3d)(**axes, hover_name=numbers, color=colors)


def _only(model: TracedModel, submodule: SubmodulesLike) -> list[Site]:
    found = model.sites(submodule)
    if len(found) != 1:
        raise ConfigError(f"Got {len(found)} sites as submodule; give one.")
    return found


def _batches(model: TracedModel, inputs: Any, max_length: int) -> list[TokenBatch]:
    """Returns texts, or lists of token ids, in a few batches, padded on the right."""
    rows = [ids[mask] for ids, mask in zip(*as_tokens(model, inputs), strict=True)]
    found: list[TokenBatch] = []
    for start in range(0, len(rows), _CONTEXTS):
        part = [row[:max_length] for row in rows[start : start + _CONTEXTS]]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in part]).unsqueeze(1)
        found.append(TokenBatch(ids, mask))
    return found


def _edits(
    dictionary: Dictionary | None, features: list[int], add_residual: bool, mask: Tensor
) -> tuple[Edit | None, Edit]:
    """Returns the edits of the run with the feature, and of that without it."""
    if dictionary is None:

        def zero(x: Tensor) -> Tensor:
            return x.index_fill(-1, torch.tensor(features, device=x.device), 0.0)

        return None, zero
    before = None if add_residual else graft(dictionary, mask)
    return before, edit_latents(dictionary, ablate=features, keep_error=add_residual, keep=mask)


def _values(
    model: TracedModel, site: Site, dictionary: Dictionary | None, index: int, ids: Tensor, mask: Tensor
) -> Tensor:
    """Returns a feature on all tokens (contexts, ctx)."""
    x = model.capture(ids, mask, [site])[site]
    if dictionary is None:
        return x[..., index].float().cpu()
    rows = dictionary.encode(x.to(dictionary.device, dictionary.dtype))[..., index]
    return rows.float().cpu()


def _words(model: TracedModel, ids: Tensor) -> list[str]:
    """Returns the text of each token by itself."""
    return texts_alone(pieces_of(model.tokenizer, ids.tolist()))
