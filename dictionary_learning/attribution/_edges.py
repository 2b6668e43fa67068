"""How much the latents of one site act through those of a later one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._brief import brief
from dictionary_learning._progress import Progress
from dictionary_learning._types import ModelLike, SitesLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.attribution._nodes import Node, nodes_of_one_site
from dictionary_learning.attribution._pairs import pulled
from dictionary_learning.attribution._records import Attribution, Effects
from dictionary_learning.attribution._runs import Path, paths_of
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interventions._latents import with_rows
from dictionary_learning.latents import Latents
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site


class Edges(NamedTuple):
    """Edges from all entries of one site to some of a later one."""

    upstream: Site
    downstream: Site
    chosen: Int[Tensor, "m"]
    """The later entries, by their places in the effects of their site."""
    weight: Float[Tensor, "m entries"]
    """From each entry of the earlier site."""
    error: Float[Tensor, "m batch ctx"]
    """From the earlier dictionary's errors at each token."""

    __repr__ = brief


@checked()
@usual_state(gradients=True)
def edges(
    model: ModelLike,
    dictionaries: Any,
    attribution: Attribution,
    upstream: str | Site,
    downstream: str | Site,
    chosen: Any,
    *,
    stop_at: SitesLike | None = None,
) -> Edges:
    """Returns how much of the effect of later latents comes from each earlier latent.

    weight = (gradient of the metric by the later latent) * (derivative of the later latent by the
    earlier one) * (what the earlier one is above its baseline)

    The derivative is that of the unchanged model, at the inputs of the attribution. Each later
    latent takes a backward pass from it to the earlier site: a vector-Jacobian product.

    Args:
        model: The language model.
        dictionaries: Those of the attribution.
        attribution: What `attribute` returned.
        upstream: The earlier site.
        downstream: The later site.
        chosen: Places of entries in the effects of the later site, such as
            `attribution.effects[site].top(10)`.
        stop_at: Sites between the two whose paths do not count. By default all paths do.

    Raises:
        ConfigError: An entry is not there, or is twice.
        SiteError: A site has no effects, or the earlier one does not lead to the later one.
    """
    traced = load_model(model)
    nodes = nodes_of_one_site(traced, dictionaries, "Edges")
    up, down = (_site_among(attribution, traced, site) for site in (upstream, downstream))
    if up not in nodes or down not in nodes:
        raise SiteError(
            f"There is no dictionary at '{up if up not in nodes else down}'. Give those of the attribution."
        )
    if up == nodes[down].read or traced.in_order([up, nodes[down].read])[0] != up:
        raise SiteError(f"'{nodes[down].read}', which is read, does not come after '{up}'. Name an earlier upstream.")
    effects = attribution.effects[down]
    wanted = _checked(chosen, len(effects.effect))
    stops = [] if stop_at is None else traced.sites(stop_at)
    path = paths_of(traced, {up: nodes[up]}, attribution.tokens, attribution.baseline, effects.mask)[up]
    leaf, values = _graph(traced, attribution, nodes[up], nodes[down], stops, effects.mask)
    found: list[tuple[Tensor, Tensor]] = []
    with Progress("following edges", len(wanted), "latents") as progress:
        for entry in wanted:
            found.append(_edge(values, leaf, effects, int(entry), path))
            progress.advance()
    rows, positions = effects.mask.nonzero(as_tuple=True)
    errors = torch.zeros(len(found), *effects.mask.shape)
    for number, (_, error) in enumerate(found):
        errors[number, rows, positions] = error
    weights = torch.stack([weight for weight, _ in found]) if found else torch.zeros(0, len(path.pairs.values))
    return Edges(up, down, wanted, weights, errors)


def _site_among(attribution: Attribution, model: TracedModel, site: str | Site) -> Site:
    known = attribution.effects
    found = site if site in known else next(iter(model.sites(site)))
    if found not in known:
        raise SiteError(f"'{site}' has no effects in this attribution. It has: {', '.join(map(str, known))}.")
    return next(one for one in known if known[one] is known[found])


def _checked(chosen: Any, n: int) -> Int[Tensor, "m"]:
    """Returns places of entries as a tensor, or raises ConfigError."""
    given: Any = chosen.flatten().tolist() if isinstance(chosen, Tensor) else chosen
    numbers: list[Any] = list(cast(Sequence[Any], given)) if isinstance(given, (list, tuple)) else [None]
    if not all(isinstance(one, int) and 0 <= one < n for one in numbers) or len(set(numbers)) != len(numbers):
        raise ConfigError(
            f"Got chosen={short(given)}; give different places of entries, from 0 to {n - 1}, as top(10)."
        )
    return torch.tensor(numbers, dtype=torch.long)


def _graph(
    model: TracedModel, attribution: Attribution, up: Node, down: Node, stops: Sequence[Site], mask: Tensor
) -> tuple[Tensor, Float[Tensor, "n dict_size"] | Latents]:
    """Returns a leaf added to the earlier site's activations (n, dim), and the later latents."""
    leaves: list[Tensor] = []
    read: list[Tensor] = []

    def write(x: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(x[mask.to(x.device)], requires_grad=True))
        return with_rows(x, mask, x[mask.to(x.device)] + leaves[0])

    def remember(x: Tensor) -> None:
        read.append(x)

    def stop(x: Tensor) -> Tensor:
        return x.detach()

    if {up.write, down.read} & set(stops):
        raise SiteError("The paths would stop at one of the two sites; name sites between them in stop_at.")
    edits: dict[Site, Edit] = {up.write: write, **dict.fromkeys(stops, stop), down.read: remember}
    with torch.enable_grad():
        model.run(*attribution.tokens, edits, special_tokens=True)
        rows = read[0][mask.to(read[0].device)].to(down.dictionary.device, down.dictionary.dtype)
        made = down.dictionary.reconstruct_contexts(rows, mask.sum(-1).to(down.dictionary.device))
    return leaves[0], made.latents


def _edge(latents: Latents, leaf: Tensor, effects: Effects, entry: int, path: Path) -> tuple[Tensor, Tensor]:
    """Returns the weights of the edges to one later latent, and of those from the errors (n,)."""
    places = effects.mask.nonzero().tolist()
    token = places.index([int(effects.row[entry]), int(effects.position[entry])])
    value = _value(latents, token, int(effects.latent[entry]))
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    gradient = torch.zeros_like(leaf) if gradient is None else gradient
    factor = float(effects.gradient[entry])
    difference = path.pairs.values - path.base.values
    weight = factor * pulled(path.pairs, path.clean.x, gradient) * difference
    error = factor * (gradient.to(path.error) * path.error).sum(-1)
    return weight.detach().float().cpu(), error.detach().float().cpu()


def _value(latents: Latents, token: int, latent: int) -> Float[Tensor, ""]:
    """Returns the value of one latent at one token, with its graph."""
    if isinstance(latents, Tensor):
        return latents[token, latent]
    support = latents.support
    there = (support.tokens == token) & (support.latents == latent)
    return latents.values.flatten()[there].sum()  # 0 without a graph of its own if it is not active
