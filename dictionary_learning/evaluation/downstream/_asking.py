"""Prompts about entities, and what a model answers with its activations changed."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.evaluation.downstream._entities import Entities
from dictionary_learning.evaluation.downstream._rows import bos_ids, padded
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site


class Asked(NamedTuple):
    """The prompts for one attribute of all entities."""

    ids: Int[Tensor, "entities ctx"]
    mask: Bool[Tensor, "entities ctx"]
    place: Int[Tensor, "entities"]
    """The last token of the entity."""
    end: Int[Tensor, "entities"]
    """The last token of the prompt."""
    answer: Int[Tensor, "entities"]
    choices: Int[Tensor, "values"]

    def of(self, rows: Tensor) -> "Asked":
        """Returns the prompts of some entities."""
        ids, mask, place, end, answer = (part[rows] for part in self[:5])
        return Asked(ids, mask, place, end, answer, self.choices)


def ask(model: TracedModel, given: Entities, attribute: str) -> Asked:
    """Returns the prompts that ask for an attribute of each entity."""
    before, after = given.prompts[attribute].split("{}")
    rows: list[Tensor] = []
    places: list[int] = []
    firsts: dict[str, int] = {}
    for name, row in given.table.items():
        whole = as_tokens(model, [before + name + after]).input_ids[0]
        part = as_tokens(model, [before + name]).input_ids[0]
        same = int((whole[: len(part)] == part[: len(whole)]).long().cumprod(0).sum())
        rows.append(whole)
        places.append(max(same - 1, 0))
        if row[attribute] not in firsts:
            firsts[row[attribute]] = _first_token(model, row[attribute])
    ids, mask = padded(rows)
    answers = torch.tensor([firsts[row[attribute]] for row in given.table.values()])
    choices = torch.tensor(sorted(set(firsts.values())))
    return Asked(ids, mask, torch.tensor(places), mask.sum(1) - 1, answers, choices)


def _first_token(model: TracedModel, value: str) -> int:
    ids = as_tokens(model, [f" {value}"]).input_ids[0].tolist()
    bos = bos_ids(model).tolist()
    return int(next(one for one in ids if one not in bos))


def answers(
    model: TracedModel, asked: Asked, batch_size: int, site: Site | None = None, added: Tensor | None = None
) -> Int[Tensor, "n"]:
    """Returns the likeliest of the attribute's values, with something added at the entities."""
    found: list[Tensor] = []
    for start in range(0, len(asked.ids), batch_size):
        part = slice(start, start + batch_size)
        rows = torch.arange(len(asked.ids[part]))
        edits = {}
        if site is not None and added is not None:
            place, value = asked.place[part], added[part]

            def edit(x: Tensor, rows: Tensor = rows, place: Tensor = place, value: Tensor = value) -> Tensor:
                changed = x.clone()
                changed[rows, place] = (x[rows, place].float() + value.to(x.device)).to(x.dtype)
                return changed

            edits = {site: edit}
        logits = model.run(asked.ids[part], asked.mask[part], edits, special_tokens=True)
        last = logits[rows, asked.end[part]][:, asked.choices]  # (n, values)
        found.append(asked.choices[last.argmax(1).cpu()])
    return torch.cat(found)


def at_entities(model: TracedModel, asked: Asked, site: Site, batch_size: int) -> Float[Tensor, "entities dim"]:
    """Returns the activations of the last token of each entity."""
    found: list[Tensor] = []
    for start in range(0, len(asked.ids), batch_size):
        part = slice(start, start + batch_size)
        x = model.capture(asked.ids[part], asked.mask[part], [site])[site]
        found.append(x[torch.arange(len(x)), asked.place[part]].float().cpu())
    return torch.cat(found)
