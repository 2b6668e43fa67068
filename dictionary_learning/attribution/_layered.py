"""Transcoders as parts of a model: the latents of each layer, and what replaces its MLP."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning._border import short
from dictionary_learning.attribution._nodes import Placed, check_usual
from dictionary_learning.attribution._pairs import Pairs, active, one_by_one
from dictionary_learning.data import TokenBatch
from dictionary_learning.dictionaries import Coder, Dictionary, Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._places import Places, places_of
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site


class Part(NamedTuple):
    """The latents that are read from one layer."""

    layer: int
    coder: Coder
    read: Site
    writes: dict[Site, slice]
    """The sites that they write, each with its place among the coder's outputs."""


class Layered(NamedTuple):
    """Transcoders in a model. MLPs without one are errors altogether."""

    parts: list[Part]
    """By layer."""
    owners: list[tuple[Trainable, Places]]
    outputs: list[Site]
    """What the MLP of each layer returns, whether there is a transcoder or not."""
    start: Site
    """What the first layer reads: the embeddings of the tokens."""


class Sources(NamedTuple):
    """What nodes add to the residual stream."""

    embedded: Float[Tensor, "ctx dim"]
    errors: dict[Site, Float[Tensor, "ctx dim"]]
    pairs: list[Pairs]
    """The active latents of each part."""
    added: list[Float[Tensor, "pairs output_dim"]]
    """What each of them adds to the outputs of its part."""


def layered(model: TracedModel, dictionaries: Any) -> Layered:
    """Returns transcoders by the layers of a model.

    Raises:
        ConfigError: One is no transcoder, or is not at layers; two are at one layer; or MLPs cannot
            be found.
    """
    given: Any = [dictionaries] if isinstance(dictionaries, (Dictionary, Placed)) else dictionaries
    if not isinstance(given, Sequence) or not given:
        raise ConfigError(f"Got no transcoder, but transcoders={short(given)}. Give at least one.")
    paths = [site.path for site in model.layers()]
    owners: list[tuple[Trainable, Places]] = []
    parts: list[Part] = []
    for each in cast("Sequence[Any]", given):
        dictionary, site, target = each if isinstance(each, Placed) else (each, None, None)
        if not isinstance(dictionary, Dictionary):
            raise ConfigError(f"Got a {type(dictionary).__name__}; give transcoders, or Placed(dictionary, site).")
        places = places_of(model, dictionary, site, target)
        if not isinstance(dictionary, Trainable) or set(places.reads) & set(places.writes):
            raise ConfigError(
                f"This {type(dictionary).__name__} does not predict MLPs from what they read. An attribution graph is "
                "exact since transcoders stand for all that is not linear; autoencoders leave MLPs between their "
                "sites. Give transcoders, with or without a skip connection, or attribute by edges()."
            )
        owners.append((dictionary, places))
        parts += _parts(dictionary, places, paths)
    check_usual(model, [owner for owner, _ in owners])
    outputs = _outputs(model, [site for _, places in owners for site in places.writes], paths)
    _check(model, parts, owners)
    return Layered(sorted(parts, key=lambda part: part.layer), owners, outputs, Site(paths[0], "in"))


def layer_of(site: Site, paths: Sequence[str]) -> int:
    """Returns the layer that a site is in.

    Raises:
        ConfigError: It is in none.
    """
    found = [n for n, path in enumerate(paths) if site.path.startswith(f"{path}.")]
    if not found:
        raise ConfigError(f"'{site}' is in no layer of the model. An attribution graph needs the sites of its MLPs.")
    return found[0]


@torch.no_grad()
def sources_of(model: TracedModel, at: Layered, tokens: TokenBatch, mask: Bool[Tensor, "1 ctx"]) -> Sources:
    """Returns what nodes add, by one forward pass; latents are those of the tokens of a mask."""
    reads = [site for _, places in at.owners for site in places.reads]
    values = model.capture(*tokens, list(dict.fromkeys([at.start, *reads, *at.outputs])))
    errors = {site: values[site][0].clone() for site in at.outputs}
    for owner, places in at.owners:
        rows = torch.cat([values[site][0][mask[0].to(values[site].device)] for site in places.reads], -1)
        made = owner.reconstruct(rows.to(owner.device, owner.dtype)).outputs
        for site, place in places.writes.items():
            errors[site][mask[0].to(errors[site].device)] -= made[:, place].to(errors[site])
    pairs: list[Pairs] = []
    added: list[Tensor] = []
    for part in at.parts:
        rows = values[part.read][0][mask[0].to(values[part.read].device)].to(part.coder.device, part.coder.dtype)
        pairs.append(active(part.coder.reconstruct(rows).latents, part.coder))
        added.append(one_by_one(pairs[-1], rows))
    return Sources(values[at.start][0], errors, pairs, added)


def _parts(dictionary: Trainable, places: Places, paths: Sequence[str]) -> list[Part]:
    found: list[Part] = []
    for own in dictionary.coders():
        reads = [site for site, place in places.reads.items() if place == own.reads]
        inside = {s: p for s, p in places.writes.items() if own.writes.start <= p.start and p.stop <= own.writes.stop}
        if len(reads) != 1 or sum(p.stop - p.start for p in inside.values()) != own.coder.output_dim:
            raise ConfigError(
                f"Latents of this {type(dictionary).__name__} read several sites, so they are in no one layer. Give "
                "transcoders of layers, or a cross-layer transcoder."
            )
        first = own.writes.start
        writes = {site: slice(place.start - first, place.stop - first) for site, place in inside.items()}
        found.append(Part(layer_of(reads[0], paths), own.coder, reads[0], writes))
    return found


def _outputs(model: TracedModel, writes: Sequence[Site], paths: Sequence[str]) -> list[Site]:
    """Returns the site of every layer that is as those that are written."""
    below = {site._replace(path=site.path.removeprefix(paths[layer_of(site, paths)])) for site in writes}
    if len(below) != 1:
        shown = ", ".join(sorted({str(site) for site in writes})[:3])
        raise ConfigError(f"The transcoders write {shown}, which are not the same place in each layer. Give one kind.")
    (kind,) = below
    return model.sites([kind._replace(path=path + kind.path) for path in paths])


def _check(model: TracedModel, parts: Sequence[Part], owners: Sequence[tuple[Trainable, Places]]) -> None:
    layers = [part.layer for part in parts]
    twice = [layer for layer in layers if layers.count(layer) > 1]
    written = [site for _, places in owners for site in places.writes]
    if twice or len(set(written)) != len(written):
        where = f"layer {twice[0]}" if twice else "the same MLP"
        raise ConfigError(f"Two of the transcoders are at {where}. Make a graph for each.")
    sites = list(dict.fromkeys([*written, *(part.read for part in parts)]))
    order = {site: n for n, site in enumerate(model.in_order(sites))}
    for part in parts:
        late = [site for site in part.writes if order[site] < order[part.read]]
        if late:
            raise ConfigError(f"The model reaches '{late[0]}', which is written, before '{part.read}', which is read.")


def skips_of(at: Layered) -> Mapping[Site, tuple[Part, Float[Tensor, "output_dim activation_dim"]]]:
    """Returns the skip connection into each site that has one."""
    found: dict[Site, tuple[Part, Tensor]] = {}
    for part in at.parts:
        if part.coder.W_skip is not None:
            found |= {site: (part, part.coder.W_skip.detach()[place]) for site, place in part.writes.items()}
    return found
