"""Evaluates several dictionaries on text, at several sites, in one pass over it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._hardware import float64
from dictionary_learning._plain import counted
from dictionary_learning._progress import Progress
from dictionary_learning._types import ModelLike, TextLike
from dictionary_learning.activations._filters import TokenFilter, within_limits
from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch, TokenStream, as_token_stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._wrapper import Wrapper
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation._bootstrap import document_weights
from dictionary_learning.evaluation._breakdown import TokenKinds
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place, warn_of_others
from dictionary_learning.evaluation._config import EvaluationConfig
from dictionary_learning.evaluation._conventions import (
    CONVENTIONS,
    Convention,
    Logits,
    SpecialTokens,
)
from dictionary_learning.evaluation._documents import digest_of, digest_of_masks, group_documents
from dictionary_learning.evaluation._geometry import decoder_geometry
from dictionary_learning.evaluation._measured import COUNTED, EXCLUDED, Facts, Measured
from dictionary_learning.evaluation._metrics import EvaluationBatch
from dictionary_learning.evaluation._records import DataReport, DictionaryReport, Report
from dictionary_learning.evaluation._resampling import ResamplePool
from dictionary_learning.evaluation._rule import filter_in_training, given_limits, limits_in_training
from dictionary_learning.evaluation._splices import inputs_of, sets_of_sites, splice_together, splices
from dictionary_learning.evaluation._summary import bars, described_ablations, described_metrics, described_together
from dictionary_learning.interventions import ablate, graft_across
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


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
    """Returns the metrics of dictionaries on the same text, with their error bars.

    The text is read once. Each batch's activations update the metrics of reconstruction and
    sparsity and the mean activation of each site. Then the model predicts the next tokens of the
    first batches: unchanged, with each dictionary spliced in, with dictionaries of several sites
    spliced in together, and with each site ablated. Tokens that the filter excludes are never
    replaced and count in no metric but `metrics_all_tokens`; tokens with a NaN or an infinity in
    their activations are excluded too, and counted. A dictionary that writes several sites is
    spliced into each in turn, and its metrics are means over the sites.

    Args:
        model: the language model, or its name.
        candidates: a dictionary with its name, or several. Names that occur twice get a number.
        text: text that was not used for training.
        config: how much text, and what is measured.
        token_filter: which tokens count; by default those that counted in training, and where no
            dictionary tells it all but padding, BOS and the first of each context.
        norm_limits: the largest norm that counts at each site; by default as found in training
            with the same filter.

    Raises:
        DataError: the text has no token that counts.
        ConfigError: a dictionary's width is not that of its site, its site is not known, a tensor
            holds a NaN, or two were trained with different filters and none is given.
        SiteError: a site is not in the model.
    """
    config = config or EvaluationConfig()
    traced = load_model(model)
    placed = place(traced, candidates)
    warn_of_others(traced, [(e.name, e.dictionary, e.reads, e.writes) for e in placed])
    # fresh, so that the next evaluation reads the same text
    own = {"ctx_len": config.ctx_len, "pack": config.pack}
    own = {name: getattr(text, name, value) for name, value in own.items()}  # a stream has made its contexts
    stream = as_token_stream(text, traced.tokenizer, model=traced, fresh=True, **own)
    token_filter = token_filter or filter_in_training(placed, stream)
    if norm_limits is None:
        limits = limits_in_training(traced, placed, token_filter)
    else:
        limits = given_limits(traced, norm_limits)
    batches = _read(stream, config)
    run = _Run(traced, placed, stream, batches, config, token_filter, limits)
    masks: list[tuple[Tensor, Tensor]] = []
    with Progress("reading activations", len(batches), "batches") as progress:
        for number in range(len(batches)):
            masks.append(run.add_activations(number))
            progress.advance()
    if run.n_nonfinite:
        told = counted(run.n_nonfinite, "token has", "tokens have")
        logger.warning("%s a NaN or an infinity in the activations, and no part in any metric.", told)
    if not run.n_kept:
        raise DataError(
            f"{stream.source.name} has no token that counts ({run.n_nonfinite} have a NaN or an infinity in their "
            f"activations). Give more text, or exclude less than {token_filter.describe()}."
        )
    if config.n_fidelity_tokens:
        n_batches = min(max(1, config.n_fidelity_tokens // (stream.ctx_len * config.batch_size)), len(batches))
        with Progress("measuring cross-entropy", n_batches, "batches") as progress:
            for number in range(n_batches):
                run.add_predictions(number, masks[number][1])
                progress.advance()
    return run.report([counted for counted, _ in masks])


class _Run:
    """What all dictionaries share: the model, the token filter, the sums."""

    def __init__(
        self,
        model: TracedModel,
        placed: Sequence[PlacedCandidate],
        stream: TokenStream,
        batches: Sequence[TokenBatch],
        config: EvaluationConfig,
        token_filter: TokenFilter,
        limits: Mapping[Site, float],
    ):
        self.model, self.placed, self.stream, self.batches = model, placed, stream, batches
        self.config, self.filter, self.limits = config, token_filter, limits
        self.sites = list(dict.fromkeys(site for e in placed for site in (*e.reads, *e.writes)))
        self.widths = model.widths(self.sites)
        self.n_kept = self.n_nonfinite = 0
        self.sums: dict[Site, Tensor] = {}  # each (dim,)
        self.groups = group_documents(batches)
        self.kinds = TokenKinds(stream.tokenizer, stream.special_ids, stream.ctx_len) if config.breakdown else None
        self.pool = ResamplePool(config.seed) if config.n_fidelity_tokens and "resample" in config.ablations else None
        self.sets = sets_of_sites([e.writes for e in placed]) if config.together and config.n_fidelity_tokens else []
        self.conventions = self._conventions()
        # dictionaries of one site have one variance, unless their dtypes round it differently
        spaces = [(e.writes, e.dictionary.dtype) for e in placed]
        known = list(dict.fromkeys(spaces))
        facts = Facts(
            names=tuple(e.name for e in placed),
            variances=tuple(known.index(one) for one in spaces),
            writes=tuple(tuple(map(str, e.writes)) for e in placed),
            sites=tuple(map(str, self.sites)),
            together=tuple(tuple(placed[number].name for number in numbers) for numbers in self.sets),
            columns=tuple(self.kinds.names) if self.kinds else (),
        )
        self.measured = Measured(facts, self.groups.documents, self.groups.n_documents)

    def add_activations(self, number: int) -> tuple[Bool[Tensor, "batch ctx"], Bool[Tensor, "batch ctx"]]:
        """Adds a batch to the metrics of activations.

        Returns:
            Which tokens count, and which count in predictions.
        """
        tokens, groups = self.batches[number], self.groups.by_batch[number]
        values = self.model.capture(*tokens, self.sites)  # each (batch, ctx, dim)
        keep = self.filter.token_mask(tokens)  # (batch, ctx)
        finite = torch.stack([x.isfinite().all(dim=-1).cpu() for x in values.values()]).all(dim=0)  # (batch, ctx)
        self.n_nonfinite += int((keep & ~finite).sum())
        keep &= finite
        limited = {site: x for site, x in values.items() if site in self.limits}
        if limited:
            keep &= within_limits(limited, self.limits).cpu()
        rows = self._rows(values, keep)
        self.n_kept += int(keep.sum())
        for site, x in rows.items():
            self.sums[site] = self.sums.get(site, 0) + float64(x).sum(0)
        if self.pool is not None:
            self.pool.add(rows)
        self._update(rows, keep, groups, COUNTED, tokens)
        excluded = tokens.attention_mask.cpu() & finite & ~keep
        if self.config.all_tokens:
            self._update(self._rows(values, excluded), excluded, groups, EXCLUDED, tokens)
        self._update_conventions(values, tokens, finite)
        # attention carries a NaN to later tokens, so no prediction of such a context is scored
        return keep, keep & (finite | ~tokens.attention_mask).all(dim=-1, keepdim=True)

    def add_predictions(self, number: int, keep: Bool[Tensor, "batch ctx"]) -> None:
        """Adds the losses of a batch: unchanged, with dictionaries spliced in, and ablated."""
        tokens, groups = self.batches[number], self.groups.by_batch[number]
        clean = self.model.run(*tokens)
        predictions = Predictions(clean, tokens, keep)
        part = self.measured.fidelity
        part("clean").update(predictions, None, groups)
        for i, e in enumerate(self.placed):
            for edits in splices(self.model, e, tokens, keep, self.widths):
                part(f"spliced/{i}").update(predictions, self.model.run(*tokens, edits, special_tokens=True), groups)
            if i in self.conventions:
                self._update_convention_losses(self.conventions[i], e, tokens, clean)
        for i, numbers in enumerate(self.sets):
            edits = splice_together(self.model, [self.placed[n] for n in numbers], tokens, keep, self.widths)
            part(f"together/{i}").update(predictions, self.model.run(*tokens, edits, special_tokens=True), groups)
        resampled = self.pool.edits(keep) if self.pool is not None else {}
        for site, total in self.sums.items():
            edits = {"zero": ablate(0.0, keep), "mean": ablate(total / self.n_kept, keep)}
            edits |= {"resample": resampled[site]} if resampled else {}
            for kind in self.config.ablations:
                logits = self.model.run(*tokens, {site: edits[kind]}, special_tokens=True)
                part(f"{kind}/{site}").update(predictions, logits, groups)

    def report(self, counted: Sequence[Tensor]) -> Report:
        """Returns the report of what was added."""
        config, measured = self.config, self.measured
        weights = document_weights(len(self.groups.documents), config.n_resamples, config.seed)
        clean = measured.fidelity("clean")
        data = DataReport(
            source=self.stream.source.name,
            n_tokens_read=sum(int(tokens.attention_mask.sum()) for tokens in self.batches),
            n_tokens_scored=self.n_kept,
            n_tokens_nonfinite=self.n_nonfinite,
            n_tokens_predicted=clean.n if config.n_fidelity_tokens else None,
            ctx_len=self.stream.ctx_len,
            filter=self.filter.describe(),
            n_documents=self.groups.n_documents,
            n_groups=len(self.groups.documents),
            n_resamples=0 if weights is None else len(weights),
            tokens_sha256=digest_of(self.batches),
            scored_sha256=digest_of_masks(self.batches, counted),
        )
        losses: dict[str, Any] = {}
        if config.n_fidelity_tokens:
            losses = {"ce_clean": clean.ce, "ablation": described_ablations(measured, weights)}
            losses["errors"] = bars({"ce_clean": clean.means(weights)["ce"]}, weights) if clean.n else None
        return Report(
            model=self.model.describe(),
            data=data,
            dictionaries=[self._describe(number, weights) for number in range(len(self.placed))],
            together=described_together(measured, weights) or None,
            convention=None if config.convention == "canonical" else config.convention,
            measured=measured,
            **losses,
        )

    def _describe(self, number: int, weights: Tensor | None) -> DictionaryReport:
        e, n_latents = self.placed[number], self.config.n_geometry_latents
        conventional = self.conventions.get(number)
        return DictionaryReport(
            name=e.name,
            site=", ".join(map(str, e.writes)),
            reads=None if e.reads == e.writes else ", ".join(map(str, e.reads)),
            class_name=_class_name(e.dictionary),
            activation_dim=e.dictionary.activation_dim,
            dict_size=e.dictionary.dict_size,
            k=getattr(e.dictionary, "k", None),
            geometry=decoder_geometry(e.dictionary, n_latents=n_latents, seed=self.config.seed) if n_latents else None,
            convention_metrics=None if conventional is None else conventional.compute(),
            **described_metrics(self.measured, number, weights),
        )

    def _rows(self, values: Mapping[Site, Tensor], mask: Bool[Tensor, "batch ctx"]) -> dict[Site, Tensor]:
        return {site: x[mask.to(x.device)].float() for site, x in values.items()}  # each (n, dim)

    def _update(
        self,
        rows: Mapping[Site, Tensor],
        mask: Bool[Tensor, "batch ctx"],
        groups: Int[Tensor, "batch ctx"],
        which: str,
        tokens: TokenBatch,
    ) -> None:
        """Adds rows to the metrics of all dictionaries."""
        if not mask.any():
            return
        groups = groups[mask]  # (n,)
        lengths = mask.sum(-1)  # (batch,): a dictionary may read contexts, so rows stay grouped by context
        columns = self.kinds.columns(tokens)[mask] if self.kinds and which == COUNTED else None  # (n, columns)
        known: dict[int, Tensor] = {}
        for number, e in enumerate(self.placed):
            if which == EXCLUDED and e.dictionary.reads_contexts:
                continue  # without the tokens around them, they would be read as a context of their own
            variance = self.measured.facts.variances[number]
            if variance not in known:
                known[variance] = inputs_of(e, rows, e.writes)
                self.measured.variance(variance, which).update(known[variance], groups)
            reconstruction = e.dictionary.reconstruct_contexts(inputs_of(e, rows, e.reads), lengths)
            batch = EvaluationBatch(known[variance], reconstruction.outputs, reconstruction.latents, groups)
            for metric in self.measured.metrics(number, which).values():
                metric.update(batch)
            if columns is not None:
                self.measured.breakdown(number).update(batch, columns)

    def _conventions(self) -> dict[int, Convention]:
        """Returns the figures of a package for each dictionary of one site, by its number."""
        if self.config.convention == "canonical":
            return {}
        tokenizer = self.stream.tokenizer
        known = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        ids = SpecialTokens(tuple(i for i in known if i is not None), known[2])
        make = CONVENTIONS[self.config.convention]
        return {n: make(ids) for n, e in enumerate(self.placed) if len(e.reads) == len(e.writes) == 1}

    def _update_conventions(self, values: Mapping[Site, Tensor], tokens: TokenBatch, finite: Tensor) -> None:
        for number, convention in self.conventions.items():
            e = self.placed[number]
            mask = convention.counted(tokens).cpu() & finite
            if mask.any():
                rows = self._rows({site: values[site] for site in (*e.reads, *e.writes)}, mask)
                reconstruction = e.dictionary.reconstruct_contexts(inputs_of(e, rows, e.reads), mask.sum(-1))
                convention.update(inputs_of(e, rows, e.writes), reconstruction.outputs, reconstruction.latents)

    def _update_convention_losses(
        self, convention: Convention, e: PlacedCandidate, tokens: TokenBatch, clean: Tensor
    ) -> None:
        mask = convention.replaced(tokens)
        if e.reads == e.writes:
            edits = next(splices(self.model, e, tokens, mask, self.widths))
        else:
            edits = graft_across(e.dictionary, e.reads[0], e.writes[0], mask)
        spliced = self.model.run(*tokens, edits, special_tokens=True)
        zero = self.model.run(*tokens, {e.writes[0]: ablate(0.0)}, special_tokens=True)
        convention.update_losses(tokens, Logits(clean, spliced, zero))


def _read(stream: TokenStream, config: EvaluationConfig) -> list[TokenBatch]:
    batches: list[TokenBatch] = []
    n_tokens = 0
    while n_tokens < config.n_tokens:
        tokens = stream.take(config.batch_size)
        if tokens is None:
            logger.warning(
                "The text ended after %s of %s tokens to evaluate on.", f"{n_tokens:,}", f"{config.n_tokens:,}"
            )
            break
        batches.append(tokens)
        n_tokens += int(tokens.attention_mask.sum())
    return batches


def _class_name(dictionary: Dictionary) -> str:
    """Returns the class of a dictionary, after those of what is around it, as a normalization."""
    inside = _class_name(dictionary.dictionary) if isinstance(dictionary, Wrapper) else ""
    return f"{type(dictionary).__name__} {inside}".rstrip()
