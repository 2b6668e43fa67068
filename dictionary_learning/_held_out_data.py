"""Held-out text or activations, as a run and a sweep read them: from the beginning, each time."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._assignment import SiteAssignment
from dictionary_learning._random_state import kept_random_state
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.activations._stream import ActivationBatch, ActivationStream
from dictionary_learning.data import Source, TokenStream, as_source
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import Candidate, EvaluationConfig, Report, evaluate_dictionaries
from dictionary_learning.evaluation._on_activations import measure_rows
from dictionary_learning.loggers import Evaluated
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

_ABLATED = ("ce_zero", "ce_mean", "kl_zero", "kl_mean")
"""Losses with a site ablated that stand beside the figures of its dictionary."""


class Place(NamedTuple):
    """Where a dictionary belongs."""

    name: str
    sites: SiteAssignment

    @classmethod
    def of(cls, job: TrainingJob) -> "Place":
        """Returns the place of a dictionary in training."""
        return cls(job.name, job.sites)


@runtime_checkable
class HeldOutData(Protocol):
    """Held-out text or activations, which each evaluation reads from the beginning."""

    has_predictions: bool
    """Whether the model's predictions are measured too."""

    def evaluate(self, places: Sequence[Place], dictionaries: Sequence[Dictionary]) -> list[Evaluated]:
        """Returns what is found for each dictionary; the names of figures have no prefix."""
        ...


def held_out_data(
    given: Any, config: EvaluationConfig | None, sites: Sequence[Place], data: Any, widths: Mapping[Site, int]
) -> HeldOutData:
    """Returns the held-out data of a run.

    Args:
        given: Text, or an object with `tokens` and `model`, as a `ContextStream`; or activations,
            as a cache or a list of batches.
        config: How much of it.
        sites: Where the dictionaries belong.
        data: The data of the run, which may have a model, and a filter of tokens.
        widths: The widths of its sites.

    Raises:
        ConfigError: It cannot be read again and again, or does not fit.
    """
    if given is None:
        raise ConfigError(
            "evaluate_every needs data that nothing is trained on: give evaluation_data, text or batches."
        )
    tokens: Any = getattr(given, "tokens", given)
    if given is data or (isinstance(tokens, TokenStream) and tokens is getattr(data, "tokens", None)):
        raise ConfigError(
            "Got the training data as evaluation_data: an evaluation would take rows from the training. Give other "
            "data, such as the second part of as_source(...).hold_out(20)."
        )
    model = getattr(given, "model", None) or getattr(data, "model", None)
    if _holds_text(given) and not isinstance(model, TracedModel):
        raise ConfigError(
            f"Got text as evaluation_data (a {type(given).__name__}), and the data have no language model to read it. "
            "Give ContextStream(text, model, site), or activations of the same sites."
        )
    if _holds_activations(given) or not isinstance(model, TracedModel):
        return HeldOutActivations(given, config or EvaluationConfig(), sites, widths)
    return HeldOutText(tokens, model, config, data if hasattr(data, "filter") else given, getattr(data, "tokens", None))


IN_TRAINING: Mapping[str, Any] = {
    "ablations": ("zero", "mean"), "together": False, "all_tokens": False, "breakdown": False, "n_geometry_latents": 0,
    "n_resamples": 0,
}  # fmt: skip
"""Settings of an evaluation while a run trains, which leave out what takes long."""


class HeldOutText:
    """Text that a model reads; dictionaries are spliced in, unless `n_fidelity_tokens` is 0."""

    def __init__(self, tokens: Any, model: TracedModel, config: EvaluationConfig | None, data: Any, trained_on: Any):
        self.model, self._data = model, data
        is_stream = isinstance(tokens, TokenStream)
        self._text: Any = tokens if is_stream else as_source(tokens)
        self._start = tokens.state_dict() if is_stream else None
        source: Source = tokens.source if is_stream else self._text
        if not source.repeatable:
            raise ConfigError(
                f"{source.name} can be read only once, and each evaluation reads it again. Give a list, a file or a "
                "data set as evaluation_data."
            )
        like = tokens if is_stream else trained_on
        if config is None:
            own = {"ctx_len": like.ctx_len, "pack": like.pack} if isinstance(like, TokenStream) else {}
            config = EvaluationConfig(**own).replace(**IN_TRAINING)
        ctx_len, longest = (tokens if is_stream else config).ctx_len, model.longest_context
        if longest is not None and ctx_len > longest:
            raise ConfigError(
                f"The evaluation has contexts of {ctx_len} tokens, and {model.name} reads {longest}. Set ctx_len in "
                "the EvaluationConfig."
            )
        self.config = config
        self.has_predictions = config.n_fidelity_tokens > 0

    def evaluate(self, places: Sequence[Place], dictionaries: Sequence[Dictionary]) -> list[Evaluated]:
        """Returns the metrics of `evaluate_dictionaries`, and the figures of the original model."""
        candidates = [
            Candidate(name, dictionary, sites.reads, None if sites.is_autoencoder else sites.writes)
            for (name, sites), dictionary in zip(places, dictionaries, strict=True)
        ]
        token_filter, limits = (getattr(self._data, name, None) for name in ("filter", "norm_limits"))
        try:
            report = evaluate_dictionaries(
                self.model, candidates, self._text, self.config, token_filter=token_filter, norm_limits=limits or None
            )
        finally:
            if self._start is not None:
                self._text.load_state_dict(self._start)  # a stream goes on where it was
        found: list[Evaluated] = []
        for place, entry in zip(places, report.dictionaries, strict=True):
            figures = {**entry.metrics, **_of_the_model(report, place.sites.writes)}
            # an evaluation without a bootstrap has no error bars
            errors = {key: bar.standard_error for key, bar in (entry.errors or {}).items()}
            found.append(_evaluated(figures, entry.dict_size, entry.density, errors))
        return found


class HeldOutActivations:
    """Rows of activations, which are read once and held in memory, up to `n_tokens` of them."""

    has_predictions = False

    def __init__(self, given: Any, config: EvaluationConfig, places: Sequence[Place], widths: Mapping[Site, int]):
        with kept_random_state():
            stream = ActivationStream(given)
            self._batches: list[ActivationBatch] = []
            n_rows = 0
            while n_rows < config.n_tokens and (batch := next(stream, None)) is not None:
                left = config.n_tokens - n_rows
                self._batches.append({site: x[:left].clone() for site, x in batch.items()})
                n_rows += len(next(iter(self._batches[-1].values())))
        needed = {site for place in places for sites in place.sites for site in sites}
        wrong = [site for site in needed if stream.widths.get(site) != widths.get(site, stream.widths.get(site))]
        if wrong or needed - stream.widths.keys():
            have, want = (
                ", ".join(f"{site} (width {w})" for site, w in each.items()) for each in (stream.widths, widths)
            )
            raise ConfigError(
                f"evaluation_data has {have}, and the training data has {want}. Give activations of the same sites."
            )

    def evaluate(self, places: Sequence[Place], dictionaries: Sequence[Dictionary]) -> list[Evaluated]:
        """Returns the metrics of reconstruction and of sparsity."""
        return [self._measured(place, dictionary) for place, dictionary in zip(places, dictionaries, strict=True)]

    def _measured(self, place: Place, dictionary: Dictionary) -> Evaluated:
        reads, writes = place.sites
        pairs = ((_joined(batch, reads, dictionary), _joined(batch, writes, dictionary)) for batch in self._batches)
        found = measure_rows(dictionary, pairs)
        return _evaluated(found.figures, dictionary.dict_size, found.density)


def _evaluated(
    figures: Mapping[str, Any],
    dict_size: int,
    density: Mapping[str, Any] | None,
    errors: Mapping[str, float] | None = None,
) -> Evaluated:
    """Returns the figures that are numbers, with the latents that never fired."""
    numbers = {k: float(v) for k, v in figures.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if "n_alive" in numbers:
        numbers["n_dead"] = dict_size - numbers["n_alive"]
    return Evaluated(numbers, density, errors)


def _of_the_model(report: Report, writes: Sequence[Site]) -> dict[str, float]:
    """Returns the losses of the original model, and with the sites ablated: means over these."""
    if report.ce_clean is None or report.ablation is None:
        return {}
    found, ablated = {"ce_clean": report.ce_clean}, [report.ablation[str(site)] for site in writes]
    for key in _ABLATED:
        losses = [value for one in ablated if (value := getattr(one, key)) is not None]
        if len(losses) == len(ablated):
            found[key] = sum(losses) / len(losses)
    return found


def _joined(
    batch: ActivationBatch, sites: Sequence[Site], dictionary: Dictionary
) -> Float[Tensor, "batch sum_of_widths"]:
    parts = [batch[site].to(dictionary.device, dictionary.dtype) for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _holds_text(given: Any) -> bool:
    first = given[0] if isinstance(given, (list, tuple)) and given else given
    return isinstance(first, (str, os.PathLike, Source, TokenStream))


def _holds_activations(given: Any) -> bool:
    """Returns whether data are activations, also where a model could read text."""
    if hasattr(given, "tokens"):
        return False
    if hasattr(given, "widths"):
        return True
    first = given[0] if isinstance(given, (list, tuple)) and given else given
    if isinstance(first, Mapping):  # a record of text has no tensors of floats
        first = next(iter(cast(Mapping[Any, Any], first).values()), None)
    return isinstance(first, Tensor) and first.is_floating_point()
