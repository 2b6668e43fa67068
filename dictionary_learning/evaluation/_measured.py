"""The sums of a whole evaluation, from which every figure is made, also of resampled documents.

They are a few numbers for each document, and are kept beside the report, so that reports can be
merged and dictionaries compared later, without the model.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictionary_learning.errors import DataError
from dictionary_learning.evaluation._breakdown import Breakdown
from dictionary_learning.evaluation._fidelity import FidelityMetric, recovered_shares
from dictionary_learning.evaluation._metrics import METRICS, Metric, ReconstructionMetric, Variance
from dictionary_learning.evaluation._sparsity import SparsityMetric

Part: TypeAlias = Metric | Variance | FidelityMetric | Breakdown

ABLATIONS = ("zero", "mean", "resample")
COUNTED, EXCLUDED = "counted", "excluded"
"""The tokens that the filter leaves, and the others that are no padding."""
_TENSORS = ("sums", "places")
"""Attributes of parts that hold tensors by name, beside the sums by document."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of each dictionary beside its sums."""

    names: tuple[str, ...]
    variances: tuple[int, ...]
    """The number of the variance of what each dictionary reconstructs."""
    writes: tuple[tuple[str, ...], ...]
    """The sites that each dictionary writes."""
    sites: tuple[str, ...]
    """The sites that are ablated."""
    together: tuple[tuple[str, ...], ...] = ()
    """The names of dictionaries that are spliced in at once."""
    columns: tuple[tuple[str, str], ...] = ()
    """The columns of breakdowns."""


@dataclasses.dataclass
class Measured:
    """Sums by name, and what they are of."""

    facts: Facts
    documents: Int[Tensor, "groups"]
    """The number in the source of the first document of each group."""
    n_documents: int
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)

    def variance(self, number: int, tokens: str = COUNTED) -> Variance:
        """Returns the variance of some activations."""
        part = self.parts.setdefault(f"variance/{number}/{tokens}", Variance())
        assert isinstance(part, Variance)
        return part

    def metrics(self, number: int, tokens: str = COUNTED) -> dict[str, Metric]:
        """Returns the metrics of a dictionary."""
        found: dict[str, Metric] = {}
        for name, make in METRICS.items():
            key = f"dictionary/{number}/{tokens}/{name}"
            if key not in self.parts:
                variance = self.variance(self.facts.variances[number], tokens)
                self.parts[key] = ReconstructionMetric(variance) if make is ReconstructionMetric else make()
            part = self.parts[key]
            assert isinstance(part, Metric)
            found[name] = part
        return found

    def metrics_of_all(self, number: int) -> dict[str, Metric] | None:
        """Returns the metrics over all tokens; None if excluded ones were not measured."""
        if f"dictionary/{number}/{EXCLUDED}/sparsity" not in self.parts:
            return None
        variance, found = Variance(), dict[str, Metric]()
        counted, excluded = self.metrics(number), self.metrics(number, EXCLUDED)
        for tokens in (COUNTED, EXCLUDED):
            variance.merge(self.variance(self.facts.variances[number], tokens))
        for name, make in METRICS.items():
            whole: Metric = ReconstructionMetric(variance) if make is ReconstructionMetric else make()
            for part in (counted[name], excluded[name]):
                whole.merge(cast(Any, part))
            found[name] = whole
        return found

    def breakdown(self, number: int) -> Breakdown:
        """Returns the breakdown of a dictionary's error."""
        part = self.parts.setdefault(f"dictionary/{number}/breakdown", Breakdown())
        assert isinstance(part, Breakdown)
        return part

    def fidelity(self, key: str) -> FidelityMetric:
        """Returns losses: "clean", "spliced/0" of a dictionary, "together/0", or "zero/SITE"."""
        part = self.parts.setdefault(f"fidelity/{key}", FidelityMetric())
        assert isinstance(part, FidelityMetric)
        return part

    def figures(
        self, number: int, weights: Float[Tensor, "resamples groups"] | None = None
    ) -> dict[str, Float[Tensor, "resamples"]]:
        """Returns the figures of a dictionary that have an error bar, of each resample."""
        found: dict[str, Tensor] = {}
        for metric in self.metrics(number).values():
            found |= metric.figures(weights)
        return found | self._losses(number, weights)

    def resampled_losses(self, key: str, weights: Tensor | None) -> dict[str, Tensor]:
        """Returns `ce_reconstructed`, `ce_increase` and `kl` with something spliced in."""
        clean, changed = self.fidelity("clean").means(weights), self.fidelity(key).means(weights)
        if not clean or not changed:
            return {}
        increase = changed["ce"] - clean["ce"]
        return {"ce_reconstructed": changed["ce"], "ce_increase": increase, "kl": changed["kl"]}

    def _losses(self, number: int, weights: Tensor | None) -> dict[str, Tensor]:
        found = self.resampled_losses(f"spliced/{number}", weights)
        if not found:
            return {}
        clean = self.fidelity("clean").means(weights)["ce"]
        for kind in ABLATIONS:
            ablated = FidelityMetric()  # over the sites that it writes
            for site in self.facts.writes[number]:
                ablated.merge(self.fidelity(f"{kind}/{site}"))
            if losses := ablated.means(weights):
                found[f"ce_recovered_{kind}"] = recovered_shares(clean, found["ce_reconstructed"], losses["ce"])
                gap = losses["kl"]
                found[f"kl_recovered_{kind}"] = torch.where(gap > 0, 1 - found["kl"] / gap, float("nan"))
        return found

    def firing_counts(self, number: int) -> Float[Tensor, "dict_size"]:
        """Returns on how many tokens each latent fired."""
        sparsity = self.metrics(number)["sparsity"]
        assert isinstance(sparsity, SparsityMetric)
        return sparsity.sums["firings"]

    def save(self, path: Path) -> None:
        """Writes all sums into one file, and the density of each latent."""
        tensors = {"documents": self.documents}
        for key, part in self.parts.items():
            named = {"by_document": part.by_document.tables}
            named |= {name: getattr(part, name) for name in _TENSORS if hasattr(part, name)}
            tensors |= {f"{key}|{kind}|{name}": t for kind, held in named.items() for name, t in held.items()}
        for number in range(len(self.facts.names)):
            n = self.metrics(number)["sparsity"].total("n")
            tensors[f"density/{number}"] = (self.firing_counts(number) / n).float()
        about = {**dataclasses.asdict(self.facts), "n_documents": self.n_documents}
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, {"measured": json.dumps(about)})


def load_measured(path: Path) -> Measured:
    """Returns the sums in a file.

    Raises:
        DataError: the file is damaged, or is none of these.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["measured"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        n_documents = int(about.pop("n_documents"))
        facts = Facts(**{key: _as_tuples(value) for key, value in about.items()})
        measured = Measured(facts, tensors.pop("documents"), n_documents)
        for name, tensor in tensors.items():
            if "|" in name:
                key, kind, held = name.split("|")
                _put(measured, key, kind, held, tensor)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"'{path}' holds no sums of an evaluation ({error}). Evaluate again.") from error
    return measured


def merge_measured(first: Measured, second: Measured) -> Measured:
    """Returns the sums over the texts of both, whose documents are different ones.

    Raises:
        DataError: they are not of the same dictionaries and sites.
    """
    if first.facts != second.facts:
        changed = [
            f.name for f in dataclasses.fields(Facts) if getattr(first.facts, f.name) != getattr(second.facts, f.name)
        ]
        raise DataError(
            f"The reports differ in {', '.join(changed)}. Only parts of one evaluation can be merged: the same "
            "dictionaries at the same sites, on different documents."
        )
    n = len(first.documents)
    documents = torch.cat([first.documents, second.documents])
    merged = Measured(first.facts, documents, first.n_documents + second.n_documents)
    for one, shift in ((first, 0), (second, n)):
        index = torch.arange(len(one.documents)) + shift
        for key, part in one.parts.items():
            mine: Any = _part(merged, key)
            if mine is not None:
                mine.merge(part, index)
    return merged


def _part(measured: Measured, key: str) -> Part | None:
    """Returns a part by its key, which is made if it is not there; None for an unknown metric."""
    kind, _, rest = key.partition("/")
    number, _, after = rest.partition("/")
    if kind == "variance":
        return measured.variance(int(number), after)
    if kind == "fidelity":
        return measured.fidelity(rest)
    if after == "breakdown":
        return measured.breakdown(int(number))
    tokens, _, name = after.partition("/")
    return measured.metrics(int(number), tokens).get(name)


def _put(measured: Measured, key: str, kind: str, name: str, tensor: Tensor) -> None:
    part = _part(measured, key)
    if part is not None:
        held: dict[str, Tensor] = part.by_document.tables if kind == "by_document" else getattr(part, kind)
        held[name] = tensor


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their path, as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        found |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
