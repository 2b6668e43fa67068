"""An attribution graph: nodes of one prompt, and the direct effect of each on each."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class AttributionGraph(NamedTuple):
    """The latents, errors, tokens and logits of a prompt, and their direct effects.

    Nodes are numbered in this order: latents by layer, position and number; errors of MLPs by layer
    and position; tokens; logits. Only latents and logits have edges into them.
    """

    model: str
    """The model's name; "" of an object without one."""
    prompt: str
    n_layers: int
    input_ids: Int[Tensor, "ctx"]
    tokens: tuple[str, ...]
    """The texts of the tokens."""
    layer: Int[Tensor, "latents"]
    position: Int[Tensor, "latents"]
    latent: Int[Tensor, "latents"]
    """The latent's number among those of its layer."""
    activation: Float[Tensor, "latents"]
    logit_ids: Int[Tensor, "logits"]
    """The tokens that are predicted."""
    logit_tokens: tuple[str, ...]
    probability: Float[Tensor, "logits"]
    weight: Float[Tensor, "targets nodes"]
    """Row t has what each node adds to latent t, or to logit t - latents, less the mean of all
    logits, before a cap if the model has one. What is missing from the sum is added by biases."""
    n_active: int
    """Latents that are active, of which the graph has some or all."""

    def __repr__(self) -> str:
        logits = zip(self.logit_tokens, self.probability.tolist(), strict=True)
        return (
            f"AttributionGraph({self.model}, {self.prompt!r}: {len(self.latent):,} of {self.n_active:,} active latents "
            f"in {self.n_layers} layers, {self.n_nodes:,} nodes; predicts "
            f"{', '.join(f'{token!r} {share:.3f}' for token, share in logits)})"
        )

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.weight.shape[1]

    @property
    def targets(self) -> Int[Tensor, "targets"]:
        """The node of each row of `weight`."""
        n, n_logits = len(self.latent), len(self.logit_ids)
        return torch.cat([torch.arange(n), torch.arange(self.n_nodes - n_logits, self.n_nodes)])

    @property
    def logit_weights(self) -> Float[Tensor, "nodes"]:
        """The probability of each logit, and 0 for other nodes."""
        found = self.weight.new_zeros(self.n_nodes)
        found[self.n_nodes - len(self.logit_ids) :] = self.probability.to(found)
        return found
