"""Whether one attribute of an entity can be changed by latents, and no other.

After RAVEL: Huang et al. 2024, https://arxiv.org/abs/2402.17700. Latents are chosen by a statistic,
and not by a mask that is trained, and answers are compared among the values that occur; so the
figures are no figures of RAVEL.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._bootstrap import document_weights, error_bar
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place
from dictionary_learning.evaluation.downstream._asking import Asked, answers, ask, at_entities
from dictionary_learning.evaluation.downstream._baselines import principal_components, random_like
from dictionary_learning.evaluation.downstream._directions import check_decoder, directions_of
from dictionary_learning.evaluation.downstream._entities import EntitiesLike, as_entities
from dictionary_learning.evaluation.downstream._ranking import best_columns
from dictionary_learning.evaluation.downstream._records import DisentanglingReport, Role, Scored
from dictionary_learning.evaluation.downstream._rows import dense_latents
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site

_LEAST = 8
"""Entities below which there is no figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisentanglingConfig(BaseConfig):
    """How many latents change, and between how many pairs of entities."""

    ns: tuple[int, ...] = (5, 20, 100)
    """Numbers of latents."""
    n_pairs: int = setting(60, at_least=2)
    """Pairs of entities that differ in all attributes."""
    random: bool = True
    """Whether a random dictionary of the same shape and L0, and principal components, are tried."""
    batch_size: int = setting(32, at_least=1)
    """Prompts in a forward pass."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the entities for the error bars; 0 for none."""
    seed: int = setting(0, at_least=-(2**62), at_most=2**62)
    """Of the pairs, of the resamples and of random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ns or min(self.ns) < 1:
            raise ConfigError(f"Got ns={self.ns}; give numbers of latents from 1, such as (5, 20).")


class _View(NamedTuple):
    """Latents of the entities' last tokens, by attribute that is asked for."""

    name: str
    role: Role
    latents: Mapping[str, Float[Tensor, "entities dict_size"]]
    decoder: Float[Tensor, "dict_size dim"]


@checked()
@torch.no_grad()
def disentangle_attributes(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    entities: EntitiesLike | None = None,
    config: DisentanglingConfig | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
) -> DisentanglingReport:
    """Returns how well latents change one attribute of an entity, and leave the others.

    In a prompt about one entity, n latents at its last token get the values that they have for
    another entity. `cause` is the share of pairs where the model then gives the other's attribute,
    which the latents were chosen for; `isolation` that where it still gives the entity's own, when
    asked for other attributes. The score is the mean of both over attributes. It is 0.5 where
    nothing is changed, and where everything is.

    Args:
        model: the language model, or its name.
        candidates: autoencoders of one site, with their names.
        entities: for each entity its attributes, or rows or a file of such with a column "entity";
            by default 61 cities. Only those count of which the model knows all attributes.
        config: how many latents change, and how many pairs.
        prompts: for each attribute a prompt that goes on with it, with {} for the entity.

    Raises:
        DataError: the model knows too few entities.
        ConfigError: a dictionary does not reconstruct what it reads, or a prompt has no {}.
        SiteError: a site is not in the model.
    """
    config = config or DisentanglingConfig()
    traced = load_model(model)
    placed = place(traced, candidates)
    for one in placed:
        check_decoder(one)
        if len(one.reads) != 1:
            raise ConfigError(f"'{one.name}' reads {len(one.reads)} sites; this measure changes one. Leave it out.")
    given = as_entities(entities, prompts)
    asked = {attribute: ask(traced, given, attribute) for attribute in given.prompts}
    known = torch.stack([answers(traced, one, config.batch_size) == one.answer for one in asked.values()]).all(0)
    n_known = int(known.sum())
    if n_known < _LEAST:
        raise DataError(
            f"{traced.name} knows all attributes of {n_known} of {len(known)} entities; at least {_LEAST} are needed. "
            "Give other entities, prompts or a larger model."
        )
    asked = {attribute: one.of(known.nonzero().squeeze(1)) for attribute, one in asked.items()}
    pairs = _pairs(list(asked.values()), config)
    scores: list[Scored] = []
    for site in dict.fromkeys(one.reads[0] for one in placed):
        x = {attribute: at_entities(traced, one, site, config.batch_size) for attribute, one in asked.items()}
        for view in _views(placed, site, x, config):
            scores += _scores(traced, view, site, asked, pairs, config)
        everything = _View("all activations", "dense", x, torch.eye(next(iter(x.values())).shape[1]))
        scores += _scores(traced, everything, site, asked, pairs, config)
    return DisentanglingReport(
        attributes=tuple(asked), n_entities=n_known, scores=scores,
        warning="0.5 is the score of changing nothing, and of changing everything.", settings=config.to_dict(),
    )  # fmt: skip


def _pairs(asked: Sequence[Asked], config: DisentanglingConfig) -> Int[Tensor, "pairs both"]:
    """Returns pairs of entities that differ in all attributes, each entity about as often."""
    random = np.random.default_rng(abs(config.seed))
    differ = torch.stack([one.answer.unsqueeze(0) != one.answer.unsqueeze(1) for one in asked]).all(0)  # (n, n)
    order = [torch.from_numpy(random.permutation(row.nonzero().squeeze(1).numpy())) for row in differ]
    found = [(base, int(row[turn])) for turn in range(len(differ)) for base, row in enumerate(order) if turn < len(row)]
    if not found:
        raise DataError("No two of the known entities differ in all attributes. Give more entities.")
    return torch.tensor(found[: config.n_pairs])


def _views(
    placed: Sequence[PlacedCandidate], site: Site, x: Mapping[str, Tensor], config: DisentanglingConfig
) -> Iterable[_View]:
    whole = torch.cat(list(x.values()))
    if config.random:
        found = principal_components(whole.double().numpy())
        of = {key: torch.from_numpy(found.coordinates(rows.double().numpy())).float() for key, rows in x.items()}
        yield _View("PCA", "pca", of, torch.from_numpy(found.axes).float())
    for number, one in enumerate(each for each in placed if each.reads[0] == site):
        if config.random:
            random = random_like(one, whole, config.seed + number, placed)
            yield _view(random.name, "random", random, x)
        yield _view(one.name, "dictionary", one, x)


def _view(name: str, role: Role, one: PlacedCandidate, x: Mapping[str, Tensor]) -> _View:
    latents = {key: dense_latents(one, rows) for key, rows in x.items()}
    return _View(name, role, latents, directions_of(one.dictionary))


def _scores(
    model: TracedModel, view: _View, site: Site, asked: Mapping[str, Asked], pairs: Tensor, config: DisentanglingConfig
) -> list[Scored]:
    base, source = pairs.unbind(1)
    found: list[Scored] = []
    ns = [None] if view.role == "dense" else [n for n in config.ns if n <= len(view.decoder)]
    for n in ns:
        cause: list[Tensor] = []
        isolation: list[Tensor] = []
        for chosen_for, target in asked.items():
            values = spread_between(view.latents[chosen_for].double().numpy(), target.answer.numpy())
            chosen = slice(None) if n is None else torch.from_numpy(best_columns(values, n).copy())
            for attribute, one in asked.items():
                latents = view.latents[attribute]
                added = (latents[source] - latents[base])[:, chosen] @ view.decoder[chosen]  # (pairs, dim)
                prompts = one.of(base)
                says = answers(model, prompts, config.batch_size, site, added)
                if attribute == chosen_for:
                    cause.append((says == one.answer[source]).double())
                else:
                    isolation.append((says == one.answer[base]).double())
        # an attribute has one cause, and as many isolations as there are others
        per_pair = {"cause": torch.stack(cause).mean(0), "isolation": torch.stack(isolation).mean(0)}
        per_pair = {"score": (per_pair["cause"] + per_pair["isolation"]) / 2, **per_pair}
        metrics = {key: float(value.mean()) for key, value in per_pair.items()}
        found.append(Scored(name=view.name, role=view.role, k=n, metrics=metrics, errors=_bars(per_pair, base, config)))
    return found


def spread_between(x: Float[np.ndarray, "n dim"], groups: Int[np.ndarray, "n"]) -> Float[np.ndarray, "dim"]:
    """Returns the share of each column's variance that is between groups, from 0 to 1."""
    mean = x.mean(0)
    total = ((x - mean) ** 2).sum(0)
    parts = [x[groups == one] for one in np.unique(groups)]
    between = sum(len(part) * (part.mean(0) - mean) ** 2 for part in parts)
    return np.where(total > 0, between / np.where(total > 0, total, 1), 0)


def _bars(per_pair: Mapping[str, Tensor], base: Tensor, config: DisentanglingConfig) -> Any:
    """Returns error bars over the entities that are changed."""
    names, place = base.unique(return_inverse=True)
    weights = document_weights(len(names), config.n_resamples, config.seed)
    if weights is None:
        return None
    own = weights[:, place]
    rows = {key: own @ value / own.sum(1) for key, value in per_pair.items()}
    return {key: bar for key, row in rows.items() if (bar := error_bar(row, len(names))) is not None} or None
