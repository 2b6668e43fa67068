"""What the downstream evaluations return: records with typed fields, a section of `report.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from dictionary_learning.evaluation._bootstrap import ErrorBar
from dictionary_learning.evaluation._record import Record

Role = Literal["dictionary", "random", "pca", "neurons", "dense", "majority"]
"""Whose figures they are: a dictionary's, or a baseline's or floor's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Record):
    """Figures of one dictionary or baseline."""

    name: str
    role: str
    """A `Role`."""
    k: int | None = None
    """Latents, components or neurons that were used or changed; None for all."""
    metrics: Mapping[str, float]
    errors: Mapping[str, ErrorBar] | None = None
    """By other texts of the same kind that might have been drawn for the test."""
    latents: Mapping[str, Sequence[int]] | None = None
    """The latents that were chosen, by class, where they are few."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskReport(Record):
    """Probes of one task."""

    name: str
    classes: Sequence[str]
    n_train: int
    n_test: int
    n_cut: int
    """Texts that were longer than the context."""
    scores: Sequence[Scored]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbingReport(Record):
    """Probes that use few latents."""

    tasks: Sequence[TaskReport]
    means: Sequence[Scored]
    """Over tasks. The error bars are of texts, and not of other tasks."""
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LetterReport(Record):
    """One first letter."""

    letter: str
    n_words: int
    """Test words that the probe of the activations tells right."""
    probe_f1: float
    latents: Sequence[int]
    """The main latents."""
    k_sparse_f1: float
    """Of a probe of the main latents."""
    rate: float
    """Share of the words that are absorbed: the main latents are silent, and another carries it."""
    fraction: float
    """Mean share of the probe's projection that others carry in place of the main latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorptionEntry(Record):
    """A dictionary, or a random one of its shape."""

    name: str
    role: str
    metrics: Mapping[str, float]
    """`rate`, `fraction` and `n_main_latents`: means over letters."""
    errors: Mapping[str, ErrorBar] | None = None
    letters: Sequence[LetterReport]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorptionReport(Record):
    """Feature absorption of the first letter of words."""

    n_words: int
    n_letters: int
    """Letters that the probe of the activations tells well enough."""
    entries: Sequence[AbsorptionEntry]
    warning: str | None = None
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationScoresReport(Record):
    """What ablated latents do to probes: perturbation, or removal of a correlation."""

    kind: Literal["tpp", "scr"]
    name: str
    """Of the task."""
    scores: Sequence[Scored]
    probes: Mapping[str, float]
    """Accuracies without an ablation."""
    warning: str
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisentanglingReport(Record):
    """Attributes of entities that are changed one at a time."""

    attributes: Sequence[str]
    n_entities: int
    """Entities of which the model knows all attributes."""
    scores: Sequence[Scored]
    warning: str | None = None
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextReport(Record):
    """How much of what latents say depends on the text before the token."""

    n_tokens: int
    windows: Sequence[int]
    scores: Sequence[Scored]
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamReport(Record):
    """What dictionaries are good for; a part is None where it was not asked for."""

    SCHEMA: ClassVar[int] = 1
    schema_version: int = 1
    probing: ProbingReport | None = None
    absorption: AbsorptionReport | None = None
    perturbation: AblationScoresReport | None = None
    removal: AblationScoresReport | None = None
    disentangling: DisentanglingReport | None = None
    context: ContextReport | None = None
