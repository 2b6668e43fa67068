"""Circuits: few latents and errors, and how well the model does with these alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._brief import brief
from dictionary_learning._types import ModelLike
from dictionary_learning.attribution._nodes import Node, nodes_of_one_site, states
from dictionary_learning.attribution._pairs import active, decoded, linear_part
from dictionary_learning.attribution._records import Attribution, Effects
from dictionary_learning.attribution._runs import Run, check_some, warn_of_rounding
from dictionary_learning.capture._ordinary import ordinary, special_ids
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions import combine
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._latents import with_rows
from dictionary_learning.models import Edit, load_model
from dictionary_learning.sites import Site, SiteDict


class Kept(NamedTuple):
    """What of a site is in a circuit: at each position, or at all alike."""

    latents: Bool[Tensor, "positions dict_size"]
    """One row if all positions are alike."""
    errors: Bool[Tensor, "positions"]

    __repr__ = brief


class Circuit(NamedTuple):
    """The latents and errors of some sites that are kept."""

    kept: SiteDict[Kept]

    __repr__ = brief

    @property
    def n_nodes(self) -> int:
        """Number of latents and errors, each position counted if they differ."""
        return sum(int(kept.latents.sum() + kept.errors.sum()) for kept in self.kept.values())

    def complement(self) -> "Circuit":
        """Returns the circuit of all other latents and errors of the same sites."""
        return Circuit(SiteDict({site: Kept(~kept.latents, ~kept.errors) for site, kept in self.kept.items()}))


class Means(NamedTuple):
    """What stands for latents and errors outside of a circuit: their means over tokens."""

    latents: Float[Tensor, "dict_size"]
    error: Float[Tensor, "output_dim"]

    __repr__ = brief


class Faithfulness(NamedTuple):
    """A metric with a circuit, and with what it leaves out."""

    model: float
    """The metric of the unchanged model: m(M)."""
    empty: float
    """With everything ablated at the circuit's sites."""
    circuit: float
    complement: float
    """With all that the circuit leaves out, and nothing of it."""

    @property
    def faithfulness(self) -> float:
        """(m(C) - m(empty)) / (m(M) - m(empty)): 1 if the circuit does what the model does."""
        return self._share(self.circuit)

    @property
    def completeness(self) -> float:
        """The same of the complement: 0 if the circuit leaves out nothing that matters."""
        return self._share(self.complement)

    def __str__(self) -> str:
        parts = f"model {self.model:.4g}, circuit {self.circuit:.4g}, empty {self.empty:.4g}"
        return f"faithfulness {self.faithfulness:.3f}, completeness {self.completeness:.3f} ({parts})"

    def _share(self, value: float) -> float:
        return (value - self.empty) / (self.model - self.empty) if self.model != self.empty else float("nan")


@checked()
def circuit(
    attribution: Attribution, *, n_nodes: int | None = None, threshold: float | None = None, by_position: bool = False
) -> Circuit:
    """Returns the latents and errors of largest effect in either direction, over all sites.

    Args:
        attribution: What `attribute` returned.
        n_nodes: How many to keep.
        threshold: The least effect that is kept, without its sign.
        by_position: Whether a latent is a node of its own at each position; for prompts of one
            form. Otherwise its effects are summed over positions. Effects of several rows are
            summed.

    Raises:
        ConfigError: Not exactly one of n_nodes and threshold is given.
    """
    if (n_nodes is None) == (threshold is None):
        raise ConfigError(f"Got n_nodes={n_nodes} and threshold={threshold}; give exactly one.")
    scores = {site: _scores(effects, by_position) for site, effects in attribution.effects.items()}
    if n_nodes is not None:
        everything = torch.cat([part.abs().flatten() for pair in scores.values() for part in pair])
        least = float(everything.topk(min(n_nodes, len(everything))).values[-1])
        # nodes without any effect are none
        threshold = max(least, float(torch.finfo(torch.float32).tiny))
    kept = {site: Kept(*(part.abs() >= cast(float, threshold) for part in pair)) for site, pair in scores.items()}
    return Circuit(SiteDict(kept))


@checked()
@torch.no_grad()
def mean_latents(model: ModelLike, dictionaries: Any, inputs: Any, *, special_tokens: bool = False) -> SiteDict[Means]:
    """Returns the mean latents and errors over the tokens of some inputs, for `faithfulness`.

    Raises:
        DataError: No token counts.
    """
    traced = load_model(model)
    nodes = nodes_of_one_site(traced, dictionaries, "Circuits")
    tokens = as_tokens(traced, inputs, padding_side="left")
    mask = ordinary(*tokens, () if special_tokens else special_ids(traced))
    check_some(mask)
    found: SiteDict[Means] = SiteDict({})
    for site, state in states(traced, nodes, tokens, mask).items():
        latents = state.pairs.values.new_zeros(nodes[site].dictionary.dict_size)
        latents = latents.index_add(0, state.pairs.latents, state.pairs.values) / len(state.x)
        found[site] = Means(latents, state.error.mean(0))
    return found


@checked()
def faithfulness(
    model: ModelLike,
    dictionaries: Any,
    inputs: Any,
    metric: Any,
    circuit: Circuit,
    *,
    means: Any = None,
    special_tokens: bool = False,
) -> Faithfulness:
    """Returns the metric with a circuit alone, without it, with nothing, and of the whole model.

    At every site of the circuit, latents and errors outside are ablated; those inside are what they
    are in this pass, after all ablations before. Other sites are as they are.

    Args:
        model: The language model.
        dictionaries: Those of the circuit's sites.
        inputs: A text, several, or token ids.
        metric: A function from logits to one number.
        circuit: The latents and errors that are kept.
        means: What ablated ones become, as `mean_latents` returned it; by default 0.
        special_tokens: Whether BOS, EOS and padding ids are ablated too.

    Raises:
        ConfigError: A site of the circuit has no dictionary, or has other latents or positions.
        DataError: No token counts.
    """
    traced = load_model(model)
    warn_of_rounding(traced)
    nodes = nodes_of_one_site(traced, dictionaries, "Circuits")
    tokens = as_tokens(traced, inputs, padding_side="left")
    mask = ordinary(*tokens, () if special_tokens else special_ids(traced))
    check_some(mask)
    run = Run(traced, tokens, mask, metric)
    for site, kept in circuit.kept.items():
        _check_kept(site, kept, nodes.get(site), mask.shape[1])
        if means is not None and not (isinstance(means, Mapping) and isinstance(means.get(site), Means)):
            raise ConfigError(f"Got means={short(means)}, without Means of '{site}'; give what mean_latents returns.")
    nothing = {site: Kept(kept.latents & False, kept.errors & False) for site, kept in circuit.kept.items()}

    def value(kept: Any) -> float:
        return run.value(combine(*(_only(nodes[s], k, mask, (means or {}).get(s)) for s, k in kept.items())))

    return Faithfulness(run.value({}), value(nothing), value(circuit.kept), value(circuit.complement().kept))


def _check_kept(site: Site, kept: Kept, node: Node | None, ctx: int) -> None:
    n_positions, dict_size = kept.latents.shape
    if node is None or dict_size != node.dictionary.dict_size:
        raise ConfigError(f"The circuit has {dict_size} latents at '{site}'. Give the dictionary of that site.")
    if n_positions not in (1, ctx):
        raise ConfigError(
            f"The circuit is one of {n_positions} positions, and the inputs have {ctx}. Give inputs of the same form, "
            "or make it without by_position."
        )


def _only(node: Node, kept: Kept, mask: Tensor, means: Means | None) -> dict[Site, Edit]:
    """Returns the edits that ablate all of a site but what is kept."""
    dictionary = node.dictionary
    positions = mask.nonzero()[:, 1].to(dictionary.device)  # (n,)
    positions = positions if len(kept.latents) > 1 else torch.zeros_like(positions)
    latents, errors = kept.latents.to(dictionary.device), kept.errors.to(dictionary.device)
    seen: list[Tensor] = []

    def only(y: Tensor) -> Tensor:
        x = seen[0][mask.to(y.device)].to(dictionary.device, dictionary.dtype)
        made = dictionary.reconstruct_contexts(x, mask.sum(-1).to(dictionary.device))
        pairs = active(made.latents, dictionary)
        is_out = ~latents[positions[pairs.tokens], pairs.latents]
        error = y[mask.to(y.device)].to(made.outputs) - made.outputs
        # less what is not kept: so that a circuit of everything changes no more than rounding does
        new = made.outputs - decoded(pairs.with_values(pairs.values * is_out), x)
        stays = errors[positions].unsqueeze(-1)
        if means is not None:
            new = new + linear_part(dictionary, means.latents * ~latents[positions], x)
            error = torch.where(stays, error, means.error.to(error))
        else:
            error = error * stays
        return with_rows(y, mask, new + error)

    def edit(x: Tensor) -> Tensor | None:
        seen[:] = [x]
        return only(x) if node.read == node.write else None

    return {node.read: edit} if node.read == node.write else {node.read: edit, node.write: only}


def _scores(effects: Effects, by_position: bool) -> tuple[Tensor, Tensor]:
    """Returns the effects of latents (positions, dict_size) and of errors (positions,)."""
    if not by_position:
        return effects.by_latent().unsqueeze(0), effects.error.sum().reshape(1)
    scores = torch.zeros(effects.mask.shape[1], effects.dict_size)
    scores.index_put_((effects.position, effects.latent), effects.effect, accumulate=True)
    return scores, effects.error.sum(0)
