"""Evaluates several dictionaries on text, at several sites, in one pass over it."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning._border import check, checked
from dictionary_learning._hardware import float64
from dictionary_learning._types import ModelLike, TextLike
from dictionary_learning.activations._filters import TokenFilter, within_limits
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch, TokenStream, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._candidates import Candidate, sites_of, targets_of, warn_of_others
from dictionary_learning.evaluation._metrics import (
    METRICS,
    EvaluationBatch,
    FidelityMetric,
    Metric,
    SparsityMetric,
    recovered,
)
from dictionary_learning.evaluation._on_activations import check_finite
from dictionary_learning.interventions import ablate, graft, graft_across
from dictionary_learning.interventions._activations import putting
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(BaseConfig):
    """How much text dictionaries are evaluated on, and in which batches."""

    n_tokens: int = setting(32_768, at_least=1)
    """Tokens to read for the metrics of activations and latents; fewer if the text ends."""
    n_fidelity_tokens: int = setting(8_192, at_least=0)
    """Tokens to read for cross-entropy and KL, with a forward pass per dictionary; 0 for none."""
    ctx_len: int = setting(128, at_least=2)
    """Tokens in a context; a stream of contexts has its own."""
    batch_size: int = setting(8, at_least=1)
    """Contexts in a forward pass."""
    pack: bool = True
    """Whether documents are packed into full contexts, as in training; a stream has done it."""


class Losses(TypedDict, total=False):
    """What a report holds where the model's predictions were measured."""

    ce_clean: float
    """Cross-entropy of the original model."""
    ablation: dict[str, dict[str, float]]
    """For each site, cross-entropy and KL with its activations set to zero and to their mean."""


class Report(Losses):
    """What `evaluate_dictionaries` returns, as plain data."""

    model: dict[str, Any]
    """The model's name, revision and dtype."""
    data: dict[str, Any]
    """The text, how many tokens were read, scored and not finite, and the token filter in words."""
    dictionaries: list[dict[str, Any]]
    """For each dictionary its name, site, class, sizes and metrics, and its latents' density."""


@checked()
@torch.no_grad()
def evaluate_dictionaries(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    text: TextLike,
    config: EvaluationConfig | None = None,
    *,
    token_filter: TokenFilter | None = None,
    norm_limits: Mapping[Site, float] | Mapping[str, float] | None = None,
) -> Report:
    """Returns the metrics of dictionaries on the same text.

    The text is read once. Each batch's activations update the metrics of reconstruction and
    sparsity and the mean activation of each site. Then the model predicts the next tokens of the
    first batches: unchanged, with each dictionary spliced in, and with each site ablated to zero
    and to its mean. Tokens that the filter excludes are never replaced and count in no metric;
    tokens with a NaN or an infinity in their activations are excluded too, and counted. A
    dictionary that writes several sites is spliced into each in turn, and its metrics are means
    over the sites.

    Args:
        model: the language model, or its name.
        candidates: a dictionary with its name and site, or several. Names that occur twice get a
            number.
        text: text that was not used for training.
        config: how much text.
        token_filter: which tokens count; by default all but padding, BOS and the first of each
            context.
        norm_limits: the largest norm that counts at each site, as found in training.

    Raises:
        DataError: the text has no token that counts.
        ConfigError: a dictionary's width is not that of its site, or a tensor holds a NaN.
        SiteError: a site is not in the model.
    """
    config = config or EvaluationConfig()
    traced = load_model(model)
    evaluations = _evaluations(traced, candidates)
    warn_of_others(traced, [(e.name, e.dictionary, e.reads, e.writes) for e in evaluations])
    # fresh, so that the next evaluation reads the same text
    own = {"ctx_len": config.ctx_len, "pack": config.pack}
    own = {name: getattr(text, name, value) for name, value in own.items()}  # a stream has made its contexts
    stream = as_token_stream(text, traced.tokenizer, model=traced, fresh=True, **own)
    token_filter = token_filter or TokenFilter(exclude_ids=stream.special_ids, exclude_first=True)
    batches = _read(stream, config)
    limits = {
        site: check(f"norm_limits[{key!r}]", limit, float)
        for key, limit in (norm_limits or {}).items()
        for site in sites_of(traced, key)
    }
    run = _Run(traced, evaluations, token_filter, limits)
    keeps = [run.add_activations(tokens) for tokens in batches]
    if run.n_nonfinite:
        message = "%d tokens have a NaN or an infinity in their activations; they are excluded from every metric."
        logger.warning(message, run.n_nonfinite)
    if not run.n_kept:
        raise DataError(
            f"{stream.source.name} has no token that counts ({run.n_nonfinite} have a NaN or an infinity in their "
            f"activations). Give more text, or exclude less than {token_filter.describe()}."
        )
    data: dict[str, Any] = {
        "source": stream.source.name,
        "n_tokens_read": sum(int(tokens.attention_mask.sum()) for tokens in batches),
        "n_tokens_scored": run.n_kept,
        "n_tokens_nonfinite": run.n_nonfinite,
        "ctx_len": stream.ctx_len,
        "filter": token_filter.describe(),
    }
    losses: Losses = {}
    if config.n_fidelity_tokens:
        n_batches = max(1, config.n_fidelity_tokens // (stream.ctx_len * config.batch_size))
        for tokens, keep in list(zip(batches, keeps, strict=True))[:n_batches]:
            run.add_predictions(tokens, keep)
        data["n_tokens_predicted"] = run.clean.n
        losses = {"ce_clean": run.clean.ce, "ablation": run.ablations()}
    entries = [e.describe(run.losses(e) if losses else {}) for e in evaluations]
    return {"model": traced.describe(), "data": data, "dictionaries": entries, **losses}


@dataclasses.dataclass
class _Evaluation:
    """A dictionary at its sites, and its metrics so far."""

    name: str
    dictionary: Dictionary
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    metrics: dict[str, Metric] = dataclasses.field(default_factory=lambda: {n: m() for n, m in METRICS.items()})
    spliced: FidelityMetric = dataclasses.field(default_factory=FidelityMetric)

    def describe(self, losses: dict[str, float]) -> dict[str, Any]:
        sparsity = self.metrics["sparsity"]
        assert isinstance(sparsity, SparsityMetric)
        return {
            "name": self.name,
            "site": ", ".join(map(str, self.writes)),
            **({} if self.reads == self.writes else {"reads": ", ".join(map(str, self.reads))}),
            "class": type(self.dictionary).__name__,
            "activation_dim": self.dictionary.activation_dim,
            "dict_size": self.dictionary.dict_size,
            "k": getattr(self.dictionary, "k", None),
            "metrics": {k: v for metric in self.metrics.values() for k, v in metric.compute().items()} | losses,
            "density": sparsity.density(),
        }

    def inputs(self, values: Mapping[Site, Tensor], sites: Sequence[Site]) -> Tensor:
        """Returns the activations of several sites, concatenated in the last dimension."""
        parts = [values[site].to(self.dictionary.device, self.dictionary.dtype) for site in sites]  # each (..., dim)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class _Run:
    """What all dictionaries share: the model, the token filter, and the sums of each site."""

    def __init__(
        self, model: TracedModel, evaluations: list[_Evaluation], token_filter: TokenFilter, limits: dict[Site, float]
    ):
        self.model, self.evaluations = model, evaluations
        self.filter, self.limits = token_filter, limits
        self.sites = list(dict.fromkeys(site for e in evaluations for site in (*e.reads, *e.writes)))
        self.n_kept = self.n_nonfinite = 0
        self.sums: dict[Site, Tensor] = {}  # each (dim,)
        self.clean = FidelityMetric()
        self.zero, self.mean = ({site: FidelityMetric() for site in self.sites} for _ in range(2))

    def add_activations(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Adds a batch to the metrics of activations; returns which tokens count in predictions."""
        values = self.model.capture(*tokens, self.sites)  # each (batch, ctx, dim)
        keep = self.filter.token_mask(tokens)  # (batch, ctx)
        finite = torch.stack([x.isfinite().all(dim=-1).cpu() for x in values.values()]).all(dim=0)  # (batch, ctx)
        self.n_nonfinite += int((keep & ~finite).sum())
        keep &= finite
        limited = {site: x for site, x in values.items() if site in self.limits}
        if limited:
            keep &= within_limits(limited, self.limits).cpu()
        rows = {site: x[keep.to(x.device)].float() for site, x in values.items()}  # each (n, dim)
        self.n_kept += int(keep.sum())
        for site, x in rows.items():
            self.sums[site] = self.sums.get(site, 0) + float64(x).sum(0)
        lengths = keep.sum(-1)  # (batch,): a dictionary may read contexts, so rows stay grouped by context
        for e in self.evaluations if keep.any() else ():
            x, y = e.inputs(rows, e.reads), e.inputs(rows, e.writes)
            reconstruction = e.dictionary.reconstruct_contexts(x, lengths)
            for metric in e.metrics.values():
                metric.update(EvaluationBatch(y, reconstruction.outputs, reconstruction.latents))
        # attention carries a NaN to later tokens, so no prediction of such a context is scored
        return keep & (finite | ~tokens.attention_mask).all(dim=-1, keepdim=True)

    def add_predictions(self, tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]) -> None:
        """Adds the losses of a batch: unchanged, with each dictionary spliced in, and ablated."""
        predictions = Predictions(self.model.run(*tokens), tokens, keep)
        self.clean.update(predictions)
        for e in self.evaluations:
            for edits in self._splices(e, tokens, keep):
                e.spliced.update(predictions, self.model.run(*tokens, edits))
        for site, total in self.sums.items():
            for metric, value in ((self.zero[site], 0.0), (self.mean[site], total / self.n_kept)):
                metric.update(predictions, self.model.run(*tokens, {site: ablate(value, keep)}))

    def _splices(
        self, e: _Evaluation, tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]
    ) -> Iterator[Mapping[Site, Edit]]:
        """Yields the edits of each forward pass that measures a dictionary."""
        if e.reads == e.writes and len(e.reads) == 1:
            yield {e.reads[0]: graft(e.dictionary, keep)}  # an autoencoder
        elif len(e.reads) == len(e.writes) == 1:
            yield graft_across(e.dictionary, e.reads[0], e.writes[0], keep)  # a transcoder, in one pass
        else:
            # all sites are read from the original model, then each is replaced in a pass of its own
            outputs = e.dictionary(e.inputs(self.model.capture(*tokens, e.reads), e.reads))
            widths = [len(self.sums[site]) for site in e.writes]
            for site, value in zip(e.writes, outputs.split(widths, dim=-1), strict=True):
                yield {site: putting(value, keep)}

    def ablations(self) -> dict[str, dict[str, float]]:
        return {
            str(site): {"ce_zero": zero.ce, "ce_mean": mean.ce, "kl_zero": zero.kl, "kl_mean": mean.kl}
            for (site, zero), mean in zip(self.zero.items(), self.mean.values(), strict=True)
        }

    def losses(self, e: _Evaluation) -> dict[str, float]:
        zero, mean = FidelityMetric(), FidelityMetric()  # the baselines, over the sites that it writes
        for site in e.writes:
            zero.merge(self.zero[site])
            mean.merge(self.mean[site])
        return {
            "ce_reconstructed": e.spliced.ce,
            "ce_increase": e.spliced.ce - self.clean.ce,
            "ce_recovered_zero": recovered(self.clean.ce, e.spliced.ce, zero.ce),
            "ce_recovered_mean": recovered(self.clean.ce, e.spliced.ce, mean.ce),
            "kl": e.spliced.kl,
        }


def _evaluations(model: TracedModel, candidates: Candidate | Iterable[Candidate]) -> list[_Evaluation]:
    """Returns the candidates at the model's sites, each under a name of its own.

    Raises:
        ConfigError: one is no candidate, or its dictionary does not fit its sites or holds a NaN.
    """
    found: dict[str, _Evaluation] = {}
    for one in [candidates] if isinstance(candidates, Candidate) else candidates:
        if not isinstance(one, Candidate) or not isinstance(one.dictionary, Dictionary):
            got = type(one.dictionary if isinstance(one, Candidate) else one).__name__
            raise ConfigError(
                f"Got a {got} to evaluate; give Candidate(name, dictionary, site). "
                "A trainer's dictionary is trainer.export()."
            )
        check("name", one.name, str, "a Candidate")
        # a second "a" is "a #2"
        names = itertools.chain([one.name], (f"{one.name} #{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in found)
        check_finite(one.dictionary, f"Dictionary '{name}'")
        reads = sites_of(model, one.site)
        writes = targets_of(model, one, reads, name)
        widths = model.widths(list(dict.fromkeys((*reads, *writes))))
        try:
            one.dictionary.check_sites([widths[site] for site in reads], [widths[site] for site in writes])
        except ConfigError as error:
            sites = ", ".join(f"'{site}'" for site in widths)
            raise ConfigError(f"Dictionary '{name}' does not fit {sites} in {model.name}: {error}") from error
        found[name] = _Evaluation(name, one.dictionary, reads, writes)
    if not found:
        raise ConfigError("Got no dictionary to evaluate. Give at least one Candidate(name, dictionary, site).")
    return list(found.values())


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
