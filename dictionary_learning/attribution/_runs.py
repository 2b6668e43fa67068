"""Forward and backward passes of a model whose activations are rewritten at some sites."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.attribution._metrics import Metric, scalar
from dictionary_learning.attribution._nodes import Node, State, in_place, states
from dictionary_learning.attribution._pairs import Pairs, decoded, joined_keys, pulled
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ConfigError, DataError, ModelError
from dictionary_learning.interventions._latents import with_rows
from dictionary_learning.models import Edit, TracedModel
from dictionary_learning.sites import Site

_LOGIT = 16
"""A usual size of a logit."""


class Path(NamedTuple):
    """The way of a site's activations from a baseline, at the tokens that count."""

    node: Node
    clean: State
    start: Float[Tensor, "n output_dim"]
    """The activations in the baseline."""
    pairs: Pairs
    """The latents, as they are."""
    base: Pairs
    """The same latents in the baseline."""
    error: Float[Tensor, "n output_dim"]
    """What the difference of the latents does not explain of that of the activations: of the errors
    and, where other inputs are the baseline, of what a dictionary adds by itself, as W_skip x."""

    @classmethod
    def between(cls, node: Node, clean: State, other: State | None) -> "Path":
        """Returns the way from other inputs; from latents and an error of 0 if there are none."""
        if other is None:
            return cls(
                node, clean, clean.origin, clean.pairs, clean.pairs.with_values(0 * clean.pairs.values), clean.error
            )
        keys = joined_keys(clean.pairs, other.pairs)
        keys = keys[clean.pairs.at(keys).values != other.pairs.at(keys).values]  # the others have no effect
        pairs, base = clean.pairs.at(keys), other.pairs.at(keys)
        explained = decoded(pairs.with_values(pairs.values - base.values), clean.x)
        return cls(node, clean, other.y, pairs, base, clean.y - other.y - explained)


class Found(NamedTuple):
    """What a method finds at a site: the gradient of each latent, and the effect of each error."""

    gradient: Float[Tensor, "pairs"]
    error: Float[Tensor, "sites n"]
    """At each site that is written, in the order of the model."""

    @classmethod
    def of(cls, path: Path, gradient: Float[Tensor, "n output_dim"]) -> "Found":
        """Returns them by the gradient of the activations."""
        product = gradient.to(path.error) * path.error
        errors = torch.stack([part.sum(-1) for part in path.node.at_sites(product).values()])
        return cls(pulled(path.pairs, path.clean.x, gradient), errors)


class Run(NamedTuple):
    """A model, its inputs, the tokens that count, and what is asked of the logits."""

    model: TracedModel
    tokens: TokenBatch
    mask: Bool[Tensor, "batch ctx"]
    metric: Metric

    @torch.no_grad()
    def value(self, edits: Mapping[Site, Edit]) -> float:
        """Returns the metric with edits."""
        return _finite(float(scalar(self.metric, self.model.run(*self.tokens, edits, special_tokens=True))))

    def gradient_at(
        self, node: Node, at: Float[Tensor, "n output_dim"] | None = None
    ) -> tuple[float, Float[Tensor, "n output_dim"]]:
        """Returns the metric, and its gradient by what a dictionary writes, at all its sites.

        Sites after the first are held: each has its own latents and errors, and what the earlier
        ones pass on is in these already. `at` has other activations of the tokens that count.
        """
        _, *held = node.writes
        value, found = self.gradients(list(node.writes), None if at is None else node.at_sites(at), held)
        return value, torch.cat([found[site].to(node.dictionary.device) for site in in_place(node.writes)], dim=-1)

    def gradients(
        self, sites: list[Site], at: Mapping[Site, Tensor] | None = None, held: Sequence[Site] = ()
    ) -> tuple[float, dict[Site, Float[Tensor, "n dim"]]]:
        """Returns the metric, and its gradients at the tokens that count.

        `at` has other activations (n, dim) of these tokens. At sites that are `held`, no gradient
        goes on to earlier ones.
        """
        leaves: dict[Site, Tensor] = {}

        def edit_at(site: Site) -> Edit:
            def edit(x: Tensor) -> Tensor:
                rows = x[self.mask.to(x.device)]
                # nothing is added, so what the model computes keeps its bits
                leaves[site] = torch.zeros_like(rows, requires_grad=True)
                given = None if at is None else at.get(site)
                rows = rows if given is None else given.to(rows)
                rows = rows.detach() if site in held else rows
                return with_rows(x, self.mask, rows + leaves[site])

            return edit

        with torch.enable_grad():
            value = scalar(
                self.metric, self.model.run(*self.tokens, {site: edit_at(site) for site in sites}, special_tokens=True)
            )
        if not value.requires_grad:
            raise ModelError(
                f"The metric of {self.model.name} has no gradient: the model runs on a server, or the metric does not "
                "use the logits. Use method='ablation', or load the model here."
            )
        found = torch.autograd.grad(value, [leaves[site] for site in sites], allow_unused=True)
        zeros = (torch.zeros_like(leaves[site]) if g is None else g for site, g in zip(sites, found, strict=True))
        return _finite(float(value.detach())), {site: g.float() for site, g in zip(sites, zeros, strict=True)}


def warn_of_rounding(model: TracedModel) -> None:
    """Warns, once for a model, if its logits are of so few bits that effects come in steps."""
    if model.dtype.is_floating_point and torch.finfo(model.dtype).eps > torch.finfo(torch.float32).eps:
        step = _LOGIT * torch.finfo(model.dtype).eps
        model.warn_once(
            "%s is in %s, where a logit near %d comes in steps of %.2g: so do metrics, effects and faithfulness. "
            "Load it with load_model(..., dtype='float32').",
            *(model.name, str(model.dtype).removeprefix("torch."), _LOGIT, step),
        )


def check_some(mask: Bool[Tensor, "batch ctx"]) -> None:
    """Raises DataError if no token counts."""
    if not mask.any():
        raise DataError("No token counts: all are padding or special, or left out by keep. Give other inputs.")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"The metric is {value}, which has no effects. Look at the logits, and at the metric.")
    return value


def paths_of(
    model: TracedModel, nodes: Mapping[Site, Node], tokens: TokenBatch, other: TokenBatch | None, mask: Tensor
) -> dict[Site, Path]:
    """Returns the way of each site's activations from a baseline, by one forward pass for each."""
    clean = states(model, nodes, tokens, mask)
    base = {} if other is None else states(model, nodes, other, mask)
    return {site: Path.between(node, clean[site], base.get(site)) for site, node in nodes.items()}
