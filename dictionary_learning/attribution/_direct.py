"""Direct effects: gradients through a model of which only the linear part is left.

Attention patterns and the denominators of norms are constants, and MLPs are replaced: what one
returns is a constant, but for the skip connection of its transcoder. So what reaches a latent is
linear in what earlier nodes add, and a gradient is that linear map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.attribution._frozen import Frozen
from dictionary_learning.attribution._layered import Layered, Sources, layered, skips_of, sources_of
from dictionary_learning.capture._logits import logits_of, named_unembedding
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ModelError
from dictionary_learning.models import Edit, TracedModel
from dictionary_learning.sites import Site


class Node(NamedTuple):
    """A node that others have effects on."""

    part: int | None
    """The part that a latent is of; None for a logit."""
    position: int
    number: int
    """Of the latent, or the token's id."""


class DirectEffects:
    """The direct effects on any latent or logit of a prompt.

    Logits are multiplied as in the model, and taken before a cap, as in circuit-tracer.

    Args:
        model: The language model.
        dictionaries: Transcoders.
        tokens: One prompt.
        mask: The tokens that have latents. What an MLP returns for others is an error as a whole.

    Raises:
        ConfigError: The dictionaries are no transcoders of layers.
        ModelError: The model's attention or norms are computed in a way that is not known, its
            unembedding or what follows it is not known, or the prediction is no number.
    """

    def __init__(self, model: TracedModel, dictionaries: Any, tokens: TokenBatch, mask: Bool[Tensor, "1 ctx"]):
        self.model, self.tokens, self.mask = model, tokens, mask
        self.at: Layered = layered(model, dictionaries)
        self._head, path = _unembedding(model)
        self._reads = Site(path, "in")
        # a cap bends logits, and is left out: its slope at one prompt's logits is not theirs
        self._factor = logits_of(model._original, model._original.get_submodule(path), model.name).factor
        self.sources: Sources = sources_of(model, self.at, tokens, mask)
        positions = mask[0].nonzero().squeeze(1)
        self.positions = [positions[pairs.tokens.cpu()] for pairs in self.sources.pairs]
        """The position of each active latent, by part."""
        self._run: _Run | None = None

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "vocab"]:
        """Returns the logits of the next token."""
        found = self.model.run(*self.tokens)[0, -1].float()
        if not bool(found.isfinite().all()):
            raise ModelError(f"{self.model.name} predicts logits that are not finite. Load it in float32.")
        return found

    def on(self, nodes: Sequence[Node], n_copies: int) -> Float[Tensor, "targets sources"]:
        """Returns what each source adds to some nodes: latents by part, errors by layer, tokens.

        `n_copies` of the prompt run at once, of which each has one node; at least as many as nodes.
        """
        if self._run is None or self._run.n_copies != n_copies:
            self._run = _run(self.model, self.at, self.tokens, self.mask, n_copies, self._reads)
        with torch.enable_grad():
            total = self._value(nodes, self._run)
            leaves = [self._run.start, *self._run.outputs.values()]
            found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        start, *outputs = (
            torch.zeros_like(leaf[: len(nodes)]) if gradient is None else gradient[: len(nodes)]
            for leaf, gradient in zip(leaves, found, strict=True)
        )
        by_site = dict(zip(self._run.outputs, outputs, strict=True))
        errors = [_along(by_site[site], error) for site, error in self.sources.errors.items()]
        latents = [self._of_part(number, by_site) for number in range(len(self.at.parts))]
        every = [*latents, *errors, _along(start, self.sources.embedded)]
        return torch.cat([one.to(start.device, torch.promote_types(start.dtype, torch.float32)) for one in every], 1)

    def _of_part(self, number: int, gradients: dict[Site, Tensor]) -> Float[Tensor, "targets pairs"]:
        part, added = self.at.parts[number], self.sources.added[number]
        # pairs are in the order of tokens
        positions, counts = self.positions[number].unique_consecutive(return_counts=True)
        found = added.new_zeros(len(next(iter(gradients.values()))), len(added))
        for site, place in part.writes.items():
            gradient = gradients[site].to(added)
            rows = zip(positions.tolist(), added[:, place].split(counts.tolist()), strict=True)
            # a product for each token: gathered for each pair, gradients would be k times as large
            products = [gradient[:, position] @ vectors.T for position, vectors in rows]
            found += torch.cat(products, 1) if products else 0
        return found

    def _value(self, nodes: Sequence[Node], run: "_Run") -> Float[Tensor, ""]:
        """Returns the sum of nodes, each in a copy of the prompt of its own."""
        total: Any = 0
        for number in {node.part for node in nodes}:
            rows = torch.tensor([row for row, node in enumerate(nodes) if node.part == number])
            positions, columns = torch.tensor([nodes[row][1:] for row in rows.tolist()]).unbind(1)
            if number is None:
                x = run.reads[self._reads][rows, positions]  # (n, dim)
                weight = self._head.weight.detach().to(x)
                values = self._factor * (x * (weight[columns.to(x.device)] - weight.mean(0))).sum()
            else:
                coder = self.at.parts[number].coder
                x = run.reads[self.at.parts[number].read][rows, positions].to(coder.device, coder.dtype)
                values = coder.encode(x).gather(1, columns.to(coder.device).unsqueeze(1)).sum()
            total = total + values.to(run.start.device, torch.promote_types(run.start.dtype, torch.float32))
        return total


class _Run(NamedTuple):
    """A forward pass of copies of a prompt, with what is added to it and what is read from it."""

    n_copies: int
    start: Float[Tensor, "copies ctx dim"]
    outputs: dict[Site, Float[Tensor, "copies ctx dim"]]
    reads: dict[Site, Float[Tensor, "copies ctx dim"]]


def _run(
    model: TracedModel, at: Layered, tokens: TokenBatch, mask: Bool[Tensor, "1 ctx"], n_copies: int, last: Site
) -> _Run:
    added: dict[Site, Tensor] = {}
    reads: dict[Site, Tensor] = {}
    skips = skips_of(at)

    def constant(site: Site) -> Edit:
        def edit(y: Tensor) -> Tensor:
            added[site] = torch.zeros_like(y, requires_grad=True)
            new = y.detach() + added[site]
            if site in skips:
                part, weight = skips[site]
                x = reads[part.read] * mask.unsqueeze(-1).to(y.device)
                skip = torch.nn.functional.linear(x.to(weight), weight).to(y)
                new = new + (skip - skip.detach())
            return new

        return edit

    def remember(site: Site) -> Edit:
        def look(x: Tensor) -> None:
            reads[site] = x

        return look

    edits = {site: remember(site) for site in (*(part.read for part in at.parts), last)}
    edits |= {site: constant(site) for site in (at.start, *at.outputs)}
    with torch.enable_grad(), Frozen() as frozen:
        model.run(
            tokens.input_ids.expand(n_copies, -1),
            tokens.attention_mask.expand(n_copies, -1),
            edits,
            special_tokens=True,
        )
    if frozen.n_attentions < len(at.outputs) or not frozen.n_norms:
        raise ModelError(
            f"The attention or the norms of {model.name} are not computed by functions of torch that are known, so "
            "they cannot be held constant. Load it with attn_implementation='sdpa' or 'eager'."
        )
    return _Run(n_copies, added.pop(at.start), added, reads)


def _along(gradient: Float[Tensor, "targets ctx dim"], vectors: Float[Tensor, "ctx dim"]) -> Tensor:
    return torch.einsum("tcd,cd->tc", gradient, vectors.to(gradient))


def _unembedding(model: TracedModel) -> tuple[Any, str]:
    """Returns the module that computes logits, and its path."""
    root: Any = model.module
    found = named_unembedding(root)
    path = next((path for path, part in root.named_modules() if part is found and found is not None), None)
    if path is None:
        raise ModelError(f"{model.name} names no unembedding with a matrix. Give a language model of transformers.")
    return found, path
