"""Dictionaries as parts of a model's computation: x = decode(latents) + error at each site.

The model itself stays as it is: what it computes at a site is rewritten as this sum. A gradient at
the site is that of all its latents and of the error, and goes on to earlier sites unchanged. So no
dictionary blocks the gradients of another, and nothing is counted twice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning._types import SubmodulesLike
from dictionary_learning.attribution._pairs import Pairs, active, decoded
from dictionary_learning.data import TokenBatch
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.interventions._places import places_of
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site


class Placed(NamedTuple):
    """A dictionary and its site, where its `info` does not say it."""

    dictionary: Dictionary
    site: SubmodulesLike | None = None
    """The site that it reads; by default the one that its `info` names."""
    target: SubmodulesLike | None = None
    """The site that a transcoder writes; by default as in `latent_edits`."""


DictionariesLike: TypeAlias = Dictionary | Placed | Sequence[Dictionary | Placed]
"""One dictionary or several."""


class Node(NamedTuple):
    """A dictionary, and the sites that it reads and writes."""

    dictionary: Dictionary
    reads: dict[Site, slice]
    """Each with its place among the inputs."""
    writes: dict[Site, slice]
    """Each with its place among the outputs."""

    @property
    def read(self) -> Site:
        """The site that is read, or the first of several."""
        return next(iter(self.reads))

    @property
    def write(self) -> Site:
        """The site that is written, or the first of several."""
        return next(iter(self.writes))

    @property
    def is_at_several(self) -> bool:
        """Whether it reads or writes several sites."""
        return len(self.reads) > 1 or len(self.writes) > 1

    def at_sites(self, y: Float[Tensor, "n output_dim"]) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns the part of outputs that is at each site."""
        return {site: y[..., place] for site, place in self.writes.items()}


class State(NamedTuple):
    """What a dictionary makes of tokens: what is written is decode(latents) + error."""

    x: Float[Tensor, "n dim"]
    """What is read."""
    y: Float[Tensor, "n output_dim"]
    """What is written, or reconstructed."""
    pairs: Pairs
    """The latents that are active."""
    error: Float[Tensor, "n output_dim"]

    @property
    def origin(self) -> Float[Tensor, "n output_dim"]:
        """What is left without latents and error: the biases."""
        return self.y - self.error - self.explained

    @property
    def explained(self) -> Float[Tensor, "n output_dim"]:
        """What the latents add."""
        return decoded(self.pairs, self.x)


def nodes_of(model: TracedModel, dictionaries: Any) -> dict[Site, Node]:
    """Returns dictionaries by the (first) sites that they write, in the order of the model.

    Raises:
        ConfigError: One reads other tokens, or does not fit; or two are at one site.
    """
    single = isinstance(dictionaries, (Dictionary, Placed))
    given: Any = [dictionaries] if single else dictionaries
    found: dict[Site, Node] = {}
    for each in given if isinstance(given, Sequence) else [given]:
        dictionary, site, target = each if isinstance(each, Placed) else (each, None, None)
        if not isinstance(dictionary, Dictionary):
            raise ConfigError(f"Got a {type(dictionary).__name__}; give dictionaries, or Placed(dictionary, site).")
        name = type(dictionary).__name__
        if dictionary.reads_contexts:
            raise ConfigError(f"Latents of this {name} depend on the tokens before; its effects have no one token.")
        reads, writes = places_of(model, dictionary, site, target)
        node = Node(dictionary, reads, {one: writes[one] for one in model.in_order(list(writes))})
        twice = [one for other in found.values() for one in other.writes if one in node.writes]
        if twice:
            raise ConfigError(f"Two dictionaries are at '{twice[0]}'. Attribute to one after the other.")
        found[node.write] = node
    if not found:
        raise ConfigError("Got no dictionary. Give at least one.")
    check_usual(model, [node.dictionary for node in found.values()])
    return {site: found[site] for site in model.in_order(list(found))}


def check_usual(model: TracedModel, dictionaries: Sequence[Dictionary]) -> None:
    """Raises ModelError if gradients cannot go through tensors, made under `inference_mode`."""
    if torch.is_inference_mode_enabled():
        return
    for module in (model._original, *dictionaries):
        if any(part.is_inference() for part in (*module.parameters(), *module.buffers())):
            raise ModelError(
                f"The {type(module).__name__} was made under torch.inference_mode(), whose tensors have no gradients. "
                "Load it outside."
            )


def nodes_of_one_site(model: TracedModel, dictionaries: Any, what: str) -> dict[Site, Node]:
    """Returns the same, where each is to be at one site.

    Raises:
        ConfigError: One is at several, or as `nodes_of`.
    """
    found = nodes_of(model, dictionaries)
    for node in found.values():
        if node.is_at_several:
            raise ConfigError(
                f"This {type(node.dictionary).__name__} reads {len(node.reads)} sites and writes {len(node.writes)}. "
                f"{what} need dictionaries of one site, or transcoders; attribute() takes it, and latent_edits_for "
                "measures the effect of a latent by ablation."
            )
    return found


@torch.no_grad()
def states(
    model: TracedModel, nodes: Mapping[Site, Node], tokens: TokenBatch, mask: Bool[Tensor, "batch ctx"]
) -> dict[Site, State]:
    """Returns what each dictionary makes of the tokens of a mask, by one forward pass."""
    sites = list(dict.fromkeys(site for node in nodes.values() for site in (*node.reads, *node.writes)))
    values = model.capture(tokens.input_ids, tokens.attention_mask, sites)
    return {site: _state(node, values, mask) for site, node in nodes.items()}


def _state(node: Node, values: Mapping[Site, Tensor], mask: Tensor) -> State:
    """Returns what a dictionary makes of activations (batch, ctx, dim) at the tokens of a mask."""
    dictionary = node.dictionary
    rows, written = (
        torch.cat([values[site][mask.to(values[site].device)].to(dictionary.device) for site in in_place(places)], -1)
        for places in (node.reads, node.writes)
    )
    rows = rows.to(dictionary.dtype)
    made = dictionary.reconstruct_contexts(rows, mask.sum(-1).to(dictionary.device))
    return State(rows, written.to(made.outputs), active(made.latents, dictionary), written - made.outputs)


def in_place(places: Mapping[Site, slice]) -> list[Site]:
    """Returns sites in the order in which their activations are concatenated."""
    return sorted(places, key=lambda site: places[site].start)
