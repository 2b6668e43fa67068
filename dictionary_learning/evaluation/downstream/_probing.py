"""Probes that use few latents of a text: k-sparse probing.

Gurnee et al. 2023, https://arxiv.org/abs/2305.01610; as in SAEBench (Karvonen et al. 2025) and
sae-probes (Kantamneni et al. 2025, https://arxiv.org/abs/2502.16681).
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._bootstrap import ErrorBar, error_bar, wilson_bar
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place, warn_of_others
from dictionary_learning.evaluation.downstream._baselines import principal_components, random_dictionaries
from dictionary_learning.evaluation.downstream._figures import figures_of
from dictionary_learning.evaluation.downstream._logistic import fit_probe
from dictionary_learning.evaluation.downstream._pooling import Pooled, Pooling, TextReader, pool_texts
from dictionary_learning.evaluation.downstream._ranking import RANKINGS, best_columns
from dictionary_learning.evaluation.downstream._records import ProbingReport, Role, Scored, TaskReport
from dictionary_learning.evaluation.downstream._rows import once_and_resampled
from dictionary_learning.evaluation.downstream._splitting import Problem, Split, few_texts, split_task
from dictionary_learning.evaluation.downstream._tasks import ProbeTask, TaskLike, as_probe_tasks
from dictionary_learning.models import load_model

logger = logging.getLogger(__name__)

BASELINES = ("dense", "pca", "random", "neurons", "majority")
_FEW = 16
"""Latents of a probe that a report lists."""
FIGURES = ("auc", "accuracy", "balanced_accuracy", "f1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbingConfig(BaseConfig):
    """How texts become rows, which latents a probe gets, and what it is compared with."""

    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents."""
    pooling: Pooling = "mean"
    """What stands for a text: the mean over its tokens, the largest value, or the last token."""
    ranking: str = "mean_difference"
    """How latents are ranked on the training texts: "mean_difference", "f_statistic" or "l1"."""
    n_train: int = setting(1024, at_least=4)
    """Texts for training, at most; and a quarter of all are for the test."""
    n_test: int = setting(512, at_least=4)
    """Texts for the test, at most."""
    balanced: bool = True
    """Whether classes have as many texts each, in training and in the test."""
    strengths: tuple[float, ...] = (0.01, 1.0, 100.0)
    """Values of C of the logistic regressions, the inverse of the L2 penalty; chosen by
    cross-validation on the training texts."""
    baselines: tuple[str, ...] = BASELINES
    """Among "dense" (all activations), "pca" and "neurons" (k of these), "random" (a random
    dictionary of the same shape and L0), and "majority"."""
    ctx_len: int = setting(128, at_least=2)
    """Tokens of a text that are read: the first, or with pooling="last" the last ones."""
    batch_size: int = setting(16, at_least=1)
    """Texts in a forward pass."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the test texts for the error bars; 0 for none."""
    seed: int = setting(0, at_least=-(2**62), at_most=2**62)
    """Seed of the split, of the resamples and of random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"Got ks={self.ks}; give numbers of latents from 1, such as (1, 2, 5).")
        if not self.strengths or not all(0 < one < float("inf") for one in self.strengths):
            raise ConfigError(f"Got strengths={self.strengths}; give values of C above 0, such as (0.01, 1, 100).")
        RANKINGS[self.ranking]
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(f"Got '{name}' in baselines; they are {', '.join(BASELINES)}.")


class _Figures:
    """Figures of one probe or a mean of several, with those of each resample."""

    def __init__(self, name: str, role: Role, k: int | None, values: dict[str, Tensor], n: int, n_least: int):
        self.name, self.k, self.values, self.n, self.n_least = name, k, values, n, n_least
        self.role: Role = role
        self.latents: dict[str, list[int]] | None = None

    def scored(self) -> Scored:
        """Returns the record."""
        errors: dict[str, ErrorBar] = {}
        for key, row in self.values.items():
            bar = error_bar(row[1:], self.n, key) if len(row) > 1 else None
            if self.role != "majority" and key in FIGURES and len(row) > 1 and not (bar and bar.standard_error):
                bar = wilson_bar(float(row[0]), self.n if key == "accuracy" else self.n_least)
            if bar is not None:
                errors[key] = bar
        metrics = {key: float(row[0]) for key, row in self.values.items()}
        return Scored(
            name=self.name, role=self.role, k=self.k, metrics=metrics, errors=errors or None, latents=self.latents
        )


@checked()
@torch.no_grad()
def probe_latents(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    tasks: TaskLike,
    config: ProbingConfig | None = None,
) -> ProbingReport:
    """Returns how well k latents of dictionaries tell the labels of texts.

    A probe is a logistic regression on the k latents that tell the training texts best. All
    dictionaries and baselines have the same texts and resamples, so that differences are paired:
    `auc_over_pca` and `auc_over_random` are the AUC less that of the baseline at the same k.

    Args:
        model: the language model, or its name.
        candidates: dictionaries with their names and sites.
        tasks: labelled texts, as `as_probe_tasks` accepts them.
        config: how texts are read, and what they are compared with.

    Raises:
        DataError: a task cannot be read, or has too few texts of two classes.
        ConfigError: a dictionary does not fit its site.
        SiteError: a site is not in the model.
    """
    config = config or ProbingConfig()
    traced = load_model(model)
    placed = place(traced, candidates)
    warn_of_others(traced, [(e.name, e.dictionary, e.reads, e.writes) for e in placed])
    found = as_probe_tasks(tasks)
    splits = [split_of(task, config) for task in found]  # errors come before anything is computed
    for task, split in zip(found, splits, strict=True):
        if told := few_texts(task.name, split.n_test):
            logger.warning(told)
    sites = list(dict.fromkeys(site for one in placed for site in one.reads))
    reader = TextReader(traced, sites, config.ctx_len, config.batch_size, config.pooling == "last")
    texts = [text for split in splits for text in split.texts[:8]]
    randoms = random_dictionaries(reader, placed, texts, config.seed) if "random" in config.baselines else []
    reports: list[TaskReport] = []
    columns: list[list[_Figures]] = []
    for number, (task, split) in enumerate(zip(found, splits, strict=True)):
        pooled = pool_texts(reader, [*placed, *randoms], split.texts, config.pooling)
        columns.append(_figures(split, pooled, placed, randoms, config, config.seed + number))
        reports.append(
            TaskReport(
                name=task.name,
                classes=split.classes,
                n_train=split.n_train,
                n_test=split.n_test,
                n_cut=pooled.n_cut,
                scores=[one.scored() for one in columns[-1]],
            )
        )
    return ProbingReport(tasks=reports, means=_means(columns), settings=config.to_dict())


def split_of(task: ProbeTask, config: ProbingConfig) -> Split:
    """Returns the texts of a task that train and test probes."""
    options = {name: getattr(config, name) for name in ("n_train", "n_test", "balanced", "seed")}
    return split_task(task, **options)


def _figures(
    split: Split,
    pooled: Pooled,
    placed: Sequence[PlacedCandidate],
    randoms: Sequence[PlacedCandidate],
    config: ProbingConfig,
    seed: int,
) -> list[_Figures]:
    """Returns the figures of all dictionaries and baselines of a task."""
    weights = once_and_resampled(split.n_test, config.n_resamples, seed)
    found: list[_Figures] = []
    if "majority" in config.baselines:
        found.append(
            _Figures("majority class", "majority", None, _majority(split, weights), split.n_test, split.n_least)
        )
    for reads in pooled.inputs:
        x = pooled.inputs[reads].double().numpy()
        at = "" if len(pooled.inputs) == 1 else f" at {', '.join(map(str, reads))}"
        if "dense" in config.baselines:
            found += _at_ks(f"all activations{at}", "dense", x, None, split, config, weights)
        if "pca" in config.baselines:
            components = principal_components(x[: split.n_train]).coordinates(x)
            found += _at_ks(f"PCA{at}", "pca", components, config.ks, split, config, weights)
        if "neurons" in config.baselines:
            found += _at_ks(f"neurons{at}", "neurons", x, config.ks, split, config, weights)
        baselines = {(one.role, one.k): one for one in found}
        for one in (candidate for candidate in placed if candidate.reads == reads):
            rivals = dict(baselines)
            if randoms:
                name = randoms[placed.index(one)].name
                random = _at_ks(name, "random", _rows(pooled, name), config.ks, split, config, weights)
                rivals |= {("random", each.k): each for each in random}
                found += random
            own = _at_ks(one.name, "dictionary", _rows(pooled, one.name), config.ks, split, config, weights)
            for each in own:
                for role in ("pca", "random"):
                    if (role, each.k) in rivals:
                        each.values[f"auc_over_{role}"] = each.values["auc"] - rivals[role, each.k].values["auc"]
            found += own
    return found


def _rows(pooled: Pooled, name: str) -> np.ndarray:
    return pooled.latents[name].numpy()  # in float32: they are many, and only k of them are fitted


def _at_ks(
    name: str, role: Role, x: np.ndarray, ks: Sequence[int] | None, split: Split, config: ProbingConfig, weights: Tensor
) -> list[_Figures]:
    """Returns the figures of probes on k columns, or on all; none for a k above their number."""
    wanted = [None] if ks is None else [k for k in dict.fromkeys(ks) if k <= x.shape[1]]
    if not wanted:
        return []
    sums: list[dict[str, Tensor]] = [{} for _ in wanted]
    chosen: list[dict[str, list[int]]] = [{} for _ in wanted]
    for problem in split.problems:
        order = None
        if ks is not None:
            values = RANKINGS[config.ranking](x[problem.train], problem.truth[problem.train])
            order = best_columns(values, max(k for k in wanted if k is not None))
        for number, k in enumerate(wanted):
            part = x if order is None else x[:, order[:k]]
            if order is not None:
                chosen[number][problem.name] = order[:k].tolist()
            for key, value in _probe(part, problem, split, config, weights).items():
                sums[number][key] = sums[number].get(key, 0) + value / len(split.problems)
    found = [
        _Figures(name, role, k, values, split.n_test, split.n_least) for k, values in zip(wanted, sums, strict=True)
    ]
    for one, latents in zip(found, chosen, strict=True):
        one.latents = latents if role == "dictionary" and one.k is not None and one.k <= _FEW else None
    return found


def _probe(
    x: np.ndarray, problem: Problem, split: Split, config: ProbingConfig, weights: Tensor
) -> Mapping[str, Tensor]:
    x = x.astype(np.float64)
    probe = fit_probe(x[problem.train], problem.truth[problem.train], config.strengths)
    own = weights[:, torch.from_numpy(problem.test) - split.n_train]
    return figures_of(probe.scores(x[problem.test]), problem.truth[problem.test], own)


def _majority(split: Split, weights: Tensor) -> dict[str, Tensor]:
    """Returns the figures of who always names the class that is more frequent in training."""
    sums: dict[str, Tensor] = {}
    for problem in split.problems:
        says = 1.0 if 2 * problem.truth[problem.train].sum() > len(problem.train) else -1.0
        own = weights[:, torch.from_numpy(problem.test) - split.n_train]
        for key, value in figures_of(np.full(len(problem.test), says), problem.truth[problem.test], own).items():
            sums[key] = sums.get(key, 0) + value / len(split.problems)
    return sums


def _means(columns: Sequence[Sequence[_Figures]]) -> list[Scored]:
    """Returns the means over tasks of what every task has."""
    tables = [{(one.name, one.role, one.k): one for one in column} for column in columns]
    found: list[Scored] = []
    for key, first in tables[0].items():
        if all(key in table for table in tables):
            rows = [table[key] for table in tables]
            least = min(len(value) for row in rows for value in row.values.values())
            values = {
                name: torch.stack([row.values[name][:least] for row in rows]).mean(0)
                for name in first.values
                if all(name in row.values for row in rows)
            }
            n, n_least = sum(row.n for row in rows), sum(row.n_least for row in rows)
            found.append(_Figures(first.name, first.role, first.k, values, n, n_least).scored())
    return found
