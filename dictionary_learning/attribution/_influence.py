"""How much nodes of an attribution graph matter to its logits, and which are kept.

Lindsey et al. 2025, "On the Biology of a Large Language Model", and circuit-tracer, whose
thresholds these are.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning.attribution._graph_records import AttributionGraph

_LEAST = 1e-10
"""The least sum of a row that is divided by."""


class Pruned(NamedTuple):
    """What is kept of a graph."""

    nodes: Bool[Tensor, "nodes"]
    edges: Bool[Tensor, "targets nodes"]
    entered: Float[Tensor, "nodes"]
    """The share of all influence of the nodes that matter as much or more: the threshold from which
    on a node is kept."""

    __repr__ = brief


def influence_of(
    weight: Float[Tensor, "targets nodes"], targets: Int[Tensor, "targets"], start: Float[Tensor, "nodes"]
) -> Float[Tensor, "nodes"]:
    """Returns the influence of each node on the nodes that `start` weighs, over all paths.

    start (A + A^2 + ...), where A has the absolute weights into each node, as shares of their sum.

    Args:
        weight: Of the edges into some nodes.
        targets: The numbers of these nodes. All others have no edges into them.
        start: The weight of each node, as the probabilities of logits.
    """
    shares = _shares(weight)
    current, total = start, torch.zeros_like(start)
    for _ in range(len(start)):  # edges lead forwards, so no path is longer
        current = current[targets] @ shares
        if not current.any():
            break
        total = total + current
    return total


@checked()
def prune(graph: AttributionGraph, *, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
    """Returns the fewest nodes that have a share of the influence, and the fewest edges among them.

    Tokens and logits are always kept. Latents without an edge from them or to them are not, nor are
    errors that lead nowhere.

    Args:
        graph: What `attribution_graph` returned.
        node_threshold: The share of influence that the nodes have.
        edge_threshold: The same of edges: an edge has its share of the influence of its end.
    """
    start, targets, n_latents = graph.logit_weights, graph.targets, len(graph.latent)
    influence = influence_of(graph.weight, targets, start)
    nodes = _largest(influence, node_threshold)
    ends = len(influence) - len(graph.input_ids) - len(graph.logit_ids)
    nodes[ends:] = True
    weight = graph.weight * nodes[targets].unsqueeze(1) * nodes
    scores = _shares(weight) * (influence_of(weight, targets, start) + start)[targets].unsqueeze(1)
    edges = _largest(scores.flatten(), edge_threshold).view_as(scores) & (scores > 0)
    while True:
        leads = nodes.clone()
        leads[:ends] &= edges[:, :ends].any(0)
        leads[:n_latents] &= edges[:n_latents].any(1)
        if torch.equal(leads, nodes):
            return Pruned(nodes, edges, _entered(influence))
        nodes = leads
        edges = edges & nodes[targets].unsqueeze(1) & nodes


def _shares(weight: Float[Tensor, "targets nodes"]) -> Float[Tensor, "targets nodes"]:
    return weight.abs() / weight.abs().sum(1, keepdim=True).clamp_min(_LEAST)


def _largest(scores: Float[Tensor, "n"], share: float) -> Bool[Tensor, "n"]:
    """Returns the fewest largest scores whose sum is a share of all, with those that equal one."""
    ordered = scores.sort(descending=True).values
    sums = ordered.cumsum(0) / ordered.sum().clamp_min(torch.finfo(scores.dtype).tiny)
    last = int(torch.searchsorted(sums, share).clamp_max(len(sums) - 1))
    return scores >= ordered[last]


def _entered(influence: Float[Tensor, "nodes"]) -> Float[Tensor, "nodes"]:
    ordered, order = influence.sort(descending=True)
    sums = ordered.cumsum(0) / ordered.sum().clamp_min(torch.finfo(influence.dtype).tiny)
    return torch.zeros_like(influence).index_copy(0, order, sums)
