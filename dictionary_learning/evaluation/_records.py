"""What an evaluation returns: records with typed fields, which are written to `report.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dictionary_learning.evaluation._bootstrap import ErrorBar
from dictionary_learning.evaluation._geometry import Geometry
from dictionary_learning.evaluation._measured import Measured
from dictionary_learning.evaluation._record import Record
from dictionary_learning.evaluation.downstream._records import DownstreamReport

SCHEMA_VERSION = 2
"""Of `report.json`. 1 had no version, no error bars and nothing below `density`."""


@dataclasses.dataclass(frozen=True)
class Figure(Record):
    """One figure of a dictionary."""

    value: float
    error: ErrorBar | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataReport(Record):
    """The text of an evaluation."""

    source: str
    n_tokens_read: int
    n_tokens_scored: int
    """Tokens in the metrics of activations."""
    n_tokens_nonfinite: int = 0
    """Tokens that were excluded for a NaN or an infinity in their activations."""
    n_tokens_predicted: int | None = None
    """Tokens whose prediction was scored."""
    ctx_len: int | None = None
    filter: str | None = None
    """In words, which tokens count in no metric."""
    n_documents: int | None = None
    """Documents that were read; the error bars are over these."""
    n_groups: int | None = None
    """Groups that were resampled as one: documents, or several in a row where there are many."""
    n_resamples: int | None = None
    """Resamples of the bootstrap."""
    tokens_sha256: str | None = None
    """A checksum of the token ids of all contexts."""
    scored_sha256: str | None = None
    """A checksum of which tokens count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationReport(Record):
    """The model with a site's activations replaced, in nats per token.

    They are set to zero, to their mean, or to those of a random token.
    """

    ce_zero: float | None = None
    ce_mean: float | None = None
    ce_resample: float | None = None
    kl_zero: float | None = None
    kl_mean: float | None = None
    kl_resample: float | None = None
    errors: Mapping[str, ErrorBar] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenGroupReport(Record):
    """A dictionary on the tokens at some positions, or of one kind."""

    name: str
    n_tokens: int
    share_of_tokens: float
    share_of_error: float
    """Of the sum of squared errors over all tokens."""
    fvu: float
    """sum |e|^2 / sum |x - mean x|^2 over these tokens, the mean being that of all."""
    mse: float
    l0: float
    errors: Mapping[str, ErrorBar] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryReport(Record):
    """One dictionary at its site."""

    KEYS: ClassVar[Mapping[str, str]] = {"class_name": "class"}

    name: str
    site: str
    """The site that it writes; several with commas."""
    reads: str | None = None
    """The site that it reads, if that is another one."""
    class_name: str
    activation_dim: int
    dict_size: int
    k: int | None = None
    metrics: Mapping[str, float]
    """The figures by name (docs/evaluation.md), over the tokens that the filter leaves."""
    errors: Mapping[str, ErrorBar] | None = None
    """The error bar of each figure that has one."""
    metrics_all_tokens: Mapping[str, float] | None = None
    """The same over all tokens but padding, also those that the filter excludes."""
    errors_all_tokens: Mapping[str, ErrorBar] | None = None
    density: Mapping[str, Any] | None = None
    """How many latents fire how often; see `SparsityMetric.density`."""
    dead_by_tokens: Mapping[str, Sequence[float]] | None = None
    """The share of latents that had not fired yet after so many `tokens`."""
    by_position: Sequence[TokenGroupReport] | None = None
    by_token_class: Sequence[TokenGroupReport] | None = None
    geometry: Geometry | None = None
    convention_metrics: Mapping[str, float] | None = None
    """The figures of the package that `convention` names, by its own names."""
    config: Mapping[str, Any] | None = None
    """The settings that it was trained with."""
    history: Sequence[Mapping[str, Any]] | None = None
    """What was logged while it was trained."""

    def figure(self, name: str) -> Figure:
        """Returns one figure with its error bar."""
        return Figure(self.metrics[name], (self.errors or {}).get(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TogetherReport(Record):
    """Several dictionaries, spliced into the model at once."""

    names: Sequence[str]
    metrics: Mapping[str, float]
    """`ce_reconstructed`, `ce_increase` and `kl`."""
    errors: Mapping[str, ErrorBar] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What `evaluate_dictionaries` returns.

    A field is also read by its key in `report.json`, as `report["dictionaries"]`.
    """

    HIDDEN: ClassVar[tuple[str, ...]] = ("measured",)

    title: str | None = None
    schema_version: int = SCHEMA_VERSION
    model: Mapping[str, Any]
    """The model's name, revision and dtype."""
    data: DataReport
    dictionaries: Sequence[DictionaryReport]
    ce_clean: float | None = None
    """Cross-entropy of the original model, where predictions were measured."""
    errors: Mapping[str, ErrorBar] | None = None
    """The error bar of `ce_clean`."""
    ablation: Mapping[str, AblationReport] | None = None
    """For each site, the losses with its activations replaced."""
    together: Sequence[TogetherReport] | None = None
    convention: str | None = None
    """The package whose figures `convention_metrics` holds."""
    downstream: DownstreamReport | None = None
    """Tasks that latents should solve, where they were asked for."""
    links: Mapping[str, str] | None = None
    """Paths of pages about the same dictionaries, from the report's folder, by what they are."""
    versions: Mapping[str, str] | None = None
    seconds: Mapping[str, float] | None = None
    measured: Measured | None = dataclasses.field(default=None, compare=False, repr=False)
    """The sums by document, of which all figures are made; written beside the report."""
