"""Evaluates dictionaries on text: several at once, on several sites, in one reading of it."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.activations.filters import TokenFilter, within_limits
from dictionary_learning.config import BaseConfig
from dictionary_learning.data import TokenBatch, TokenStream, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.base import METRICS, EvaluationBatch, Metric
from dictionary_learning.evaluation.fidelity import FidelityMetric, recovered
from dictionary_learning.evaluation.sparsity import SparsityMetric
from dictionary_learning.hardware import float64
from dictionary_learning.interventions import ablate, graft, graft_across, put
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.predictions import Predictions
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(BaseConfig):
    """On what, and how much, dictionaries are evaluated."""

    n_tokens: int = 32_768
    """Tokens read for figures of activations and latents; fewer if the text ends."""
    n_fidelity_tokens: int = 8_192
    """Tokens read for cross-entropy and divergence, which take a whole forward pass for each dictionary; 0 for none."""
    ctx_len: int = 128
    """Tokens in a context."""
    batch_size: int = 8
    """Contexts in a forward pass."""
    pack: bool = True
    """Whether documents are joined into full contexts, as in training."""


class Candidate(NamedTuple):
    """A dictionary to evaluate."""

    name: str
    dictionary: Dictionary
    site: Site | tuple[Site, ...]
    """What it reads: a site, or several whose activations it takes one after another."""
    target: Site | tuple[Site, ...] | None = None
    """What it reconstructs, where that is not what it reads."""

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites that it reads."""
        return (self.site,) if isinstance(self.site, Site) else self.site

    @property
    def writes(self) -> tuple[Site, ...]:
        """The sites that it reconstructs."""
        if self.target is None:
            return self.reads
        return (self.target,) if isinstance(self.target, Site) else self.target


@torch.no_grad()
def evaluate_dictionaries(
    model: Any,
    candidates: Iterable[Candidate],
    text: Any,
    config: EvaluationConfig | None = None,
    *,
    token_filter: TokenFilter | None = None,
    norm_limits: Mapping[Site, float] | None = None,
) -> dict[str, Any]:
    """Returns the figures of several dictionaries on the same text.

    The text is read once. First every batch's activations give the figures of reconstruction and sparsity, and the
    mean activation of each site; then, on the first of the batches, the model predicts the next tokens untouched, with each dictionary
    grafted in, and with each site ablated to zero and to its mean. Tokens that the filter leaves out are left alone by all
    of these, and counted in none of the figures. A dictionary that writes several sites is grafted into each of them in turn, from
    the untouched model's activations, and its figures are means over the sites.

    Args:
        model: the language model.
        candidates: the dictionaries, each with its name and site.
        text: text that they did not see in training.
        config: on how much text.
        token_filter: which tokens count; by default all but padding, BOS and the first of each context.
        norm_limits: the largest norm that counts at each site, as found in training.

    Returns:
        A report as the renderers take it, without title and training history: "model", "data", "ce_clean",
        "ablation" by site, and for each of the "dictionaries" its metrics and density.

    Raises:
        DataError: the text holds no token that counts.
        ConfigError: a dictionary's width is not that of its site.
    """
    config = config or EvaluationConfig()
    traced = load_model(model)
    candidates = list(candidates)
    _check_widths(traced, candidates)
    # fresh, so that the next evaluation is of the same text
    stream = as_token_stream(text, traced.tokenizer, ctx_len=config.ctx_len, model=traced, fresh=True, pack=config.pack)
    token_filter = token_filter or TokenFilter(exclude_ids=stream.special_ids, exclude_first=True)
    batches = _read(stream, config)
    reading = _Reading(traced, candidates, token_filter, norm_limits or {})
    keeps = [reading.take(tokens) for tokens in batches]
    n_scored = reading.n_kept
    if not n_scored:
        raise DataError(
            f"{stream.source.name} holds no token that counts. Give more text, or leave out less than {token_filter.describe()}."
        )
    report: dict[str, Any] = {
        "model": traced.describe(),
        "data": {
            "source": stream.source.name,
            "n_tokens_read": sum(int(tokens.attention_mask.sum()) for tokens in batches),
            "n_tokens_scored": n_scored,
            "ctx_len": config.ctx_len,
            "filter": token_filter.describe(),
        },
    }
    fidelity: _Fidelity | None = None
    if config.n_fidelity_tokens:
        fidelity = _Fidelity(traced, candidates, reading.means())
        contexts = max(1, config.n_fidelity_tokens // (config.ctx_len * config.batch_size))
        for tokens, keep in list(zip(batches, keeps, strict=True))[:contexts]:
            fidelity.take(tokens, keep)
        report["data"]["n_tokens_predicted"] = fidelity.clean.n
        report["ce_clean"] = fidelity.clean.ce
        report["ablation"] = fidelity.ablations()
    report["dictionaries"] = [
        {
            "name": c.name,
            "site": ", ".join(map(str, c.writes)),
            **({} if c.target is None else {"reads": ", ".join(map(str, c.reads))}),
            "class": type(c.dictionary).__name__,
            "activation_dim": c.dictionary.activation_dim,
            "dict_size": c.dictionary.dict_size,
            "k": getattr(c.dictionary, "k", None),
            "metrics": {**reading.figures(c.name), **(fidelity.figures(c) if fidelity else {})},
            "density": reading.density(c.name),
        }
        for c in candidates
    ]
    return report


class _Reading:
    """Figures of activations and latents, and the mean activation of each site."""

    def __init__(
        self, model: TracedModel, candidates: list[Candidate], token_filter: TokenFilter, limits: Mapping[Site, float]
    ):
        self.model, self.candidates = model, candidates
        self.filter, self.limits = token_filter, limits
        self.sites = list(dict.fromkeys(site for c in candidates for site in (*c.reads, *c.writes)))
        self.metrics: dict[str, dict[str, Metric]] = {
            c.name: {name: metric() for name, metric in METRICS.items()} for c in candidates
        }
        self.n_kept = 0
        self._sums: dict[Site, Tensor] = {}

    def take(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Takes in a batch; returns which of its tokens count."""
        values = self.model.capture(*tokens, self.sites)
        keep = self.filter.token_mask(tokens)
        limited = {site: x for site, x in values.items() if site in self.limits}
        if limited:
            keep &= within_limits(limited, self.limits).cpu()
        rows = {site: x[keep.to(x.device)].float() for site, x in values.items()}
        self.n_kept += int(keep.sum())
        for site, x in rows.items():
            self._sums[site] = self._sums.get(site, 0) + float64(x).sum(0)
        if not keep.any():
            return keep
        lengths = keep.sum(-1)
        for candidate in self.candidates:
            x, y = (_stacked(rows, sites, candidate.dictionary) for sites in (candidate.reads, candidate.writes))
            reconstruction = candidate.dictionary.reconstruct_contexts(x, lengths)
            for metric in self.metrics[candidate.name].values():
                metric.update(EvaluationBatch(y, reconstruction.outputs, reconstruction.latents))
        return keep

    def means(self) -> dict[Site, Float[Tensor, "dim"]]:
        """Returns the mean activation of the tokens that count."""
        return {site: total / self.n_kept for site, total in self._sums.items()}

    def figures(self, name: str) -> dict[str, float]:
        """Returns the figures of a dictionary."""
        return {key: value for metric in self.metrics[name].values() for key, value in metric.compute().items()}

    def density(self, name: str) -> dict[str, Any]:
        """Returns the histogram of how often its latents fire."""
        sparsity = self.metrics[name]["sparsity"]
        assert isinstance(sparsity, SparsityMetric)
        return sparsity.density()


class _Fidelity:
    """Cross-entropy and divergence of the model untouched, grafted and ablated."""

    def __init__(self, model: TracedModel, candidates: list[Candidate], means: Mapping[Site, Tensor]):
        self.model, self.candidates, self.means = model, candidates, means
        self.clean = FidelityMetric()
        self.grafted = {c.name: FidelityMetric() for c in candidates}
        self.zero = {site: FidelityMetric() for site in means}
        self.mean = {site: FidelityMetric() for site in means}

    def take(self, tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]) -> None:
        predictions = Predictions(self.model.run(*tokens), tokens, keep)
        self.clean.update(predictions)

        def measure(metric: FidelityMetric, site: Site, edit: Edit) -> None:
            metric.update(predictions, self.model.run(*tokens, {site: edit}))

        for c in self.candidates:
            for edits in self._grafts(c, tokens, keep):
                self.grafted[c.name].update(predictions, self.model.run(*tokens, edits))
        for site, mean in self.means.items():
            measure(self.zero[site], site, ablate(0.0, keep))
            measure(self.mean[site], site, ablate(mean, keep))

    def _grafts(self, c: Candidate, tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]) -> Iterator[dict[Site, Edit]]:
        """Yields the edits of each forward pass that a dictionary is judged by."""
        if c.reads == c.writes and len(c.reads) == 1:
            yield {c.reads[0]: graft(c.dictionary, keep)}
        elif len(c.reads) == len(c.writes) == 1:
            yield graft_across(c.dictionary, c.reads[0], c.writes[0], keep)
        else:
            outputs = c.dictionary(_stacked(self.model.capture(*tokens, c.reads), c.reads, c.dictionary))
            widths = [self.means[site].shape[-1] for site in c.writes]
            for site, value in zip(c.writes, outputs.split(widths, dim=-1), strict=True):
                yield {site: put(value, keep)}

    def ablations(self) -> dict[str, dict[str, float]]:
        return {
            str(site): {
                "ce_zero": self.zero[site].ce,
                "ce_mean": self.mean[site].ce,
                "kl_zero": self.zero[site].kl,
                "kl_mean": self.mean[site].kl,
            }
            for site in self.means
        }

    def figures(self, candidate: Candidate) -> dict[str, float]:
        clean, grafted = self.clean.ce, self.grafted[candidate.name]
        zero, mean = FidelityMetric(), FidelityMetric()
        for site in candidate.writes:
            zero.merge(self.zero[site])
            mean.merge(self.mean[site])
        return {
            "ce_reconstructed": grafted.ce,
            "ce_increase": grafted.ce - clean,
            "ce_recovered_zero": recovered(clean, grafted.ce, zero.ce),
            "ce_recovered_mean": recovered(clean, grafted.ce, mean.ce),
            "kl": grafted.kl,
        }


def _read(stream: TokenStream, config: EvaluationConfig) -> list[TokenBatch]:
    batches: list[TokenBatch] = []
    n_tokens = 0
    while n_tokens < config.n_tokens:
        tokens = stream.take(config.batch_size)
        if tokens is None:
            logger.warning("The text ended after %d of %d tokens to evaluate on.", n_tokens, config.n_tokens)
            break
        batches.append(tokens)
        n_tokens += int(tokens.attention_mask.sum())
    return batches


def _stacked(rows: Mapping[Site, Tensor], sites: Sequence[Site], dictionary: Dictionary) -> Tensor:
    """Returns the activations of several sites, one after another, as the dictionary takes them."""
    parts = [rows[site].to(dictionary.device, dictionary.dtype) for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _check_widths(model: TracedModel, candidates: list[Candidate]) -> None:
    for candidate in candidates:
        try:
            candidate.dictionary.check_sites(
                [model.widths([site])[site] for site in candidate.reads],
                [model.widths([site])[site] for site in candidate.writes],
            )
        except ConfigError as error:
            sites = ", ".join(f"'{site}'" for site in dict.fromkeys((*candidate.reads, *candidate.writes)))
            raise ConfigError(f"Dictionary '{candidate.name}' does not fit {sites} in {model.name}: {error}") from error
