"""Targeted probe perturbation and removal of spurious correlations.

Karvonen et al. 2024, https://arxiv.org/abs/2411.18895; as in SAEBench, but for the probes, which
are logistic regressions that converge.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._bootstrap import error_bar
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place, warn_of_others
from dictionary_learning.evaluation.downstream._coded import Coded, coded_texts, effects, strongest
from dictionary_learning.evaluation.downstream._directions import check_decoder
from dictionary_learning.evaluation.downstream._fitted import FittedProbes
from dictionary_learning.evaluation.downstream._pooling import TextReader
from dictionary_learning.evaluation.downstream._records import AblationScoresReport, Scored
from dictionary_learning.evaluation.downstream._rows import once_and_resampled
from dictionary_learning.evaluation.downstream._splitting import Problem, Split, split_task
from dictionary_learning.evaluation.downstream._tasks import TaskLike, as_probe_tasks
from dictionary_learning.evaluation.downstream._triples import ExamplesLike, paired
from dictionary_learning.models import TracedModel, load_model

WARNING = (
    "Read with care: Chanin 2026 (arXiv 2605.18229) finds that TPP and SCR change with the seed, that TPP falls as "
    "training goes on, and that SCR turns negative where many latents are ablated, and advises against them."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerturbationConfig(BaseConfig):
    """Which texts are read, and how many latents are ablated."""

    ns: tuple[int, ...] = (2, 5, 10, 20, 50, 100)
    """Numbers of latents."""
    n_train: int = setting(1024, at_least=4)
    """Texts for training, at most; and a quarter of all are for the test."""
    n_test: int = setting(512, at_least=4)
    """Texts for the test, at most."""
    strengths: tuple[float, ...] = (0.01, 1.0, 100.0)
    """Values of C of the probes, chosen by cross-validation."""
    random: bool = True
    """Whether a random dictionary of the same shape and L0, and principal components, are ablated
    too."""
    ctx_len: int = setting(128, at_least=2)
    """Tokens of a text that are read."""
    batch_size: int = setting(16, at_least=1)
    """Texts in a forward pass."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the test texts for the error bars; 0 for none."""
    seed: int = setting(0, at_least=-(2**62), at_most=2**62)
    """Of the split, of the resamples and of random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ns or min(self.ns) < 1:
            raise ConfigError(f"Got ns={self.ns}; give numbers of latents from 1, such as (2, 5, 10).")


@checked()
@torch.no_grad()
def targeted_probe_perturbation(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    task: TaskLike,
    config: PerturbationConfig | None = None,
) -> AblationScoresReport:
    """Returns how far ablating the latents of a class hurts its own probe, and no other.

    tpp = mean over classes i of [loss of probe i - mean over j != i of loss of probe j]

    Here the n latents of class i are ablated, and a loss is of accuracy on balanced test texts.
    From -1 to 1, higher is better. `intended` and `unintended` are its two parts.

    Args:
        model: the language model, or its name.
        candidates: autoencoders with their names and sites.
        task: labelled texts of at least three classes.
        config: which texts are read, and how many latents are ablated.

    Raises:
        DataError: the task cannot be read, or has too few classes or texts.
        ConfigError: a dictionary does not reconstruct what it reads, by one decoder.
        SiteError: a site is not in the model.
    """
    config = config or PerturbationConfig()
    traced, placed = _placed(model, candidates)
    name, split = split_of(task, config)
    coded = _coded(traced, placed, split, config)
    weights = once_and_resampled(split.n_test, config.n_resamples, config.seed)
    scores: list[Scored] = []
    accuracies: dict[str, float] = {}
    for views in _by_site(coded):
        told = FittedProbes(views[0].x, split.problems, split, config.strengths, weights)
        accuracies = accuracies or {
            one.name: float(row[0]) for one, row in zip(split.problems, told.clean, strict=True)
        }
        for view in views:
            ranked = [
                effects(view, probe.weight, one.train, one.truth[one.train], signed=True)
                for probe, one in zip(told.probes, split.problems, strict=True)
            ]
            for n in (n for n in config.ns if n <= len(view.decoder)):
                # (ablated class, class of the probe, resamples)
                lost = torch.stack([told.lost_by(view, values, n) for values in ranked])
                intended = lost.diagonal(dim1=0, dim2=1).mean(-1)  # (resamples,)
                unintended = (lost.sum(dim=(0, 1)) - intended * len(lost)) / (len(lost) * (len(lost) - 1))
                values = {"tpp": intended - unintended, "intended": intended, "unintended": unintended}
                scores.append(_scored(view, n, values, split.n_test))
    return AblationScoresReport(
        kind="tpp", name=name, scores=scores, probes=accuracies, warning=WARNING, settings=config.to_dict()
    )


def split_of(task: TaskLike, config: PerturbationConfig) -> tuple[str, Split]:
    """Returns the name of a task, and its texts that train and test probes.

    Raises:
        ConfigError: there are several tasks.
        DataError: it cannot be read, or fewer than three classes have enough texts.
    """
    tasks = as_probe_tasks(task)
    if len(tasks) != 1:
        raise ConfigError(f"Got {len(tasks)} tasks; give one, of at least three classes.")
    split = split_task(tasks[0], n_train=config.n_train, n_test=config.n_test, balanced=True, seed=config.seed)
    if len(split.problems) < 3:
        raise DataError(f"Task '{tasks[0].name}' has {len(split.classes)} classes with enough texts; TPP needs three.")
    return tasks[0].name, split


@checked()
@torch.no_grad()
def spurious_correlation_removal(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    examples: ExamplesLike,
    config: PerturbationConfig | None = None,
    *,
    text: str = "text",
    label: str = "label",
    attribute: str = "attribute",
) -> AblationScoresReport:
    """Returns how far ablating latents of one thing frees a probe that took it for another.

    scr = (accuracy with the ablation - without it) / (accuracy of an unbiased probe - without it)

    A probe is trained on texts in which label and attribute always agree. It is tested on balanced
    texts: on the label, while latents of the attribute are ablated (`scr_label`), and the other way
    (`scr_attribute`); `scr` is that in which the biased probe is worse. 1 is as good as a probe of
    balanced texts, 0 is no change, and below 0 is worse.

    Args:
        model: the language model, or its name.
        candidates: autoencoders with their names and sites.
        examples: texts with a label and an attribute, of two classes each: a file with columns,
            rows, or triples.
        config: which texts are read, and how many latents are ablated.
        text: the column of the texts.
        label: the column of the labels.
        attribute: the column of the attributes.

    Raises:
        DataError: the examples cannot be read, or one of the four pairs has too few.
        ConfigError: a dictionary does not reconstruct what it reads, by one decoder.
        SiteError: a site is not in the model.
    """
    config = config or PerturbationConfig()
    traced, placed = _placed(model, candidates)
    name, split, label_of, attribute_of = paired(
        examples, (text, label, attribute), n_train=config.n_train, n_test=config.n_test, seed=config.seed
    )
    coded = _coded(traced, placed, split, config)
    train, test = np.arange(split.n_train), np.arange(split.n_train, len(split.texts))
    truths = {"label": label_of, "attribute": attribute_of}
    problems = {key: Problem(key, train, test, truth) for key, truth in truths.items()}
    biased = Problem("biased", train[label_of[train] == attribute_of[train]], test, label_of)
    weights = once_and_resampled(split.n_test, config.n_resamples, config.seed)
    scores: list[Scored] = []
    accuracies: dict[str, float] = {}
    for views in _by_site(coded):
        x = views[0].x
        told = FittedProbes(x, [*problems.values(), biased], split, config.strengths, weights)
        probes, (*_, own) = dict(zip(problems, told.probes, strict=False)), told.probes
        clean = dict(zip(problems, told.clean, strict=False))
        before = {key: told.accuracy(own, x, one) for key, one in problems.items()}
        accuracies = accuracies or {
            **{key: float(value[0]) for key, value in clean.items()},
            **{f"biased on {key}": float(value[0]) for key, value in before.items()},
        }
        worse = min(before, key=lambda key: float(before[key][0]))
        for view, n in ((view, n) for view in views for n in config.ns if n <= len(view.decoder)):
            found: dict[str, Tensor] = {}
            for key, other in (("label", "attribute"), ("attribute", "label")):
                values = effects(view, probes[other].weight, train, truths[other][train], signed=False)
                after = told.accuracy(own, view.without(strongest(values, n)), problems[key])
                room = clean[key] - before[key]
                found[f"scr_{key}"] = torch.where(room > 0, (after - before[key]) / room, torch.nan)
            scores.append(_scored(view, n, {"scr": found[f"scr_{worse}"], **found}, split.n_test))
    return AblationScoresReport(
        kind="scr", name=name, scores=scores, probes=accuracies, warning=WARNING, settings=config.to_dict()
    )


def _placed(model: ModelLike, candidates: Any) -> tuple[TracedModel, list[PlacedCandidate]]:
    traced = load_model(model)
    placed = place(traced, candidates)
    for one in placed:
        check_decoder(one)
    warn_of_others(traced, [(e.name, e.dictionary, e.reads, e.writes) for e in placed])
    return traced, placed


def _coded(
    traced: TracedModel, placed: Sequence[PlacedCandidate], split: Split, config: PerturbationConfig
) -> list[Coded]:
    sites = list(dict.fromkeys(site for one in placed for site in one.reads))
    reader = TextReader(traced, sites, config.ctx_len, config.batch_size, keeps_end=False)
    return coded_texts(reader, placed, split.texts, split.n_train, config.random, config.seed)


def _by_site(coded: Sequence[Coded]) -> list[list[Coded]]:
    """Returns the views that have the same activations together: they stand one after another."""
    return [list(views) for _, views in itertools.groupby(coded, key=lambda view: id(view.x))]


def _scored(view: Coded, n: int, values: Mapping[str, Tensor], n_test: int) -> Scored:
    errors = {
        key: bar for key, row in values.items() if len(row) > 1 and (bar := error_bar(row[1:], n_test, key)) is not None
    }
    metrics = {key: float(row[0]) for key, row in values.items()}
    return Scored(name=view.name, role=view.role, k=n, metrics=metrics, errors=errors or None)
