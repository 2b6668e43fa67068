"""The tokens of a batch on which latents are active, by latent: what a pass over text works on.

A place is a token of a batch of contexts: row * ctx + column. Latents are encoded for the tokens
that count, a few at a time where they are dense, so that no matrix (tokens, dict_size) of a batch
is ever made of sparse latents.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, Trainable
from dictionary_learning.dictionaries.nonlinearities import SparseSelection
from dictionary_learning.latents import Latents, Segments

_MOST_DENSE = 1 << 23
"""Elements of a dense matrix of latents, 32 MB in float32."""


class ActivePairs(NamedTuple):
    """The (token, latent) pairs with an activation above 0, sorted by latent, then by place."""

    latents: Int[Tensor, "pairs"]
    places: Int[Tensor, "pairs"]
    values: Float[Tensor, "pairs"]

    def largest_of_contexts(self, ctx: int) -> Int[Tensor, "groups"]:
        """Returns the pair with the largest value of each latent in each context, the first of
        several equal ones."""
        row = self.places // ctx
        starts = torch.ones_like(row, dtype=torch.bool)
        starts[1:] = (row[1:] != row[:-1]) | (self.latents[1:] != self.latents[:-1])
        number = starts.cumsum(0) - 1  # of the latent and context of each pair
        n_groups = int(number[-1]) + 1 if len(number) else 0
        largest = self.values.new_zeros(n_groups).scatter_reduce_(0, number, self.values, "amax")
        candidates = (self.values == largest[number]).nonzero().squeeze(1)
        first = number.new_full((n_groups,), len(number))
        return first.scatter_reduce_(0, number[candidates], candidates, "amin")

    def windows(self, pairs: Int[Tensor, "n"], before: int, after: int, ctx: int) -> Float[Tensor, "n window"]:
        """Returns the activations of a pair's latent around its token; 0 outside of the context."""
        shifts = torch.arange(-before, after + 1, device=pairs.device)
        out = self.values.new_zeros(len(pairs), len(shifts))
        # a latent has at most one pair for a token, so those of a window are near in the order, too
        near = (pairs.unsqueeze(1) + shifts).clamp_(0, max(len(self.values) - 1, 0))  # (n, window)
        latent, place = self.latents[pairs].unsqueeze(1), self.places[pairs].unsqueeze(1)
        shift = self.places[near] - place
        inside = (self.latents[near] == latent) & (shift >= -before) & (shift <= after)
        inside &= self.places[near] // ctx == place // ctx
        row, column = inside.nonzero(as_tuple=True)
        out[row, shift[row, column] + before] = self.values[near[row, column]]
        return out


def active_pairs(
    dictionary: Dictionary, x: Float[Tensor, "n activation_dim"], keep: Bool[Tensor, "batch ctx"]
) -> ActivePairs:
    """Returns the active latents of the tokens in a mask.

    Args:
        dictionary: The dictionary.
        x: The activations of these tokens, row by row.
        keep: The tokens.
    """
    places = keep.flatten().nonzero().squeeze(1).to(x.device)  # (n,)
    parts = [
        (places[tokens + first_token], latents + first_latent, values)
        for first_token, first_latent, part in _encoded(dictionary, x, keep.sum(-1).to(x.device))
        for tokens, latents, values in [_positive(part)]
    ]
    if not parts:
        return ActivePairs(places[:0], places[:0], x.new_zeros(0, dtype=torch.float32))
    place, latent, value = (torch.cat(part) for part in zip(*parts, strict=True))
    # the parts are in order of tokens for each latent, and the sort keeps that order
    order = Segments.of(place, latent, dictionary.dict_size).order
    return ActivePairs(latent[order], place[order], value[order].float())


def _encoded(dictionary: Dictionary, x: Tensor, lengths: Tensor) -> Iterator[tuple[int, int, Latents]]:
    """Yields latents of some tokens with the numbers of the first token and of the first latent."""
    if not len(x):
        return
    if not isinstance(dictionary, Trainable):
        for start, n, rows in _groups(lengths, _MOST_DENSE // dictionary.dict_size, dictionary.reads_contexts):
            yield start, 0, dictionary.reconstruct_contexts(x[start : start + n], rows).latents
        return
    for part in dictionary.coders():
        coder, own = part.coder, x[:, part.reads]
        if isinstance(coder.nonlinearity, SparseSelection) and coder.nonlinearity.of_each_token:
            yield 0, part.latents.start, coder.encode_sparse(own)
            continue
        for start, n, _ in _groups(lengths, _MOST_DENSE // coder.dict_size, False):
            rows = own[start : start + n]
            # what depends on other tokens in training is dense otherwise
            found = coder.encode_latents(rows)[0] if coder.nonlinearity.of_each_token else coder.encode(rows)
            yield start, part.latents.start, found


def _groups(lengths: Tensor, most: int, whole_contexts: bool) -> Iterator[tuple[int, int, Tensor]]:
    """Yields start, number of tokens and lengths of the contexts of each part."""
    total = int(lengths.sum())
    if not whole_contexts:
        for start in range(0, total, max(most, 1)):
            n = min(max(most, 1), total - start)
            yield start, n, lengths.new_tensor([n])
        return
    start = 0
    for n in lengths.tolist():
        if n:
            yield start, n, lengths.new_tensor([n])
        start += n


def _positive(latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token, latent and value of each activation above 0."""
    if isinstance(latents, Tensor):
        token, latent = (latents > 0).nonzero(as_tuple=True)
        return token, latent, latents[token, latent]
    values = latents.values.flatten()
    there = (values > 0).nonzero().squeeze(1)
    return latents.support.tokens[there], latents.support.latents[there], values[there]
