"""Active latents as (token, latent) pairs, and what they add to activations."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, Trainable
from dictionary_learning.latents import Latents, SparseLatents, Support, replace_values, to_dense


class Pairs(NamedTuple):
    """Values of latents at some tokens, in order of token and latent. All others are 0."""

    dictionary: Dictionary
    n_tokens: int
    tokens: Int[Tensor, "pairs"]
    latents: Int[Tensor, "pairs"]
    values: Float[Tensor, "pairs"]

    def keys(self) -> Int[Tensor, "pairs"]:
        """Returns a number for each pair, in ascending order."""
        return self.tokens * self.dictionary.dict_size + self.latents

    def support(self) -> Support:
        """Returns the pairs as the support of sparse latents."""
        starts = torch.arange(self.n_tokens + 1, device=self.tokens.device)
        return Support(self.latents, self.dictionary.dict_size, torch.searchsorted(self.tokens, starts))

    def with_values(self, values: Float[Tensor, "pairs"]) -> "Pairs":
        """Returns other values at the same pairs."""
        return self._replace(values=values)

    def at(self, keys: Int[Tensor, "n"]) -> "Pairs":
        """Returns the values at given pairs, by their keys; 0 where there is none."""
        own = self.keys()
        place = torch.searchsorted(own, keys).clamp_max(max(len(own) - 1, 0))
        values = self.values.new_zeros(len(keys))
        if len(own):
            values = torch.where(own[place] == keys, self.values[place], values)
        size = self.dictionary.dict_size
        return self._replace(tokens=keys // size, latents=keys % size, values=values)


def active(latents: Latents, dictionary: Dictionary) -> Pairs:
    """Returns the latents that are not 0."""
    if isinstance(latents, Tensor):
        tokens, columns = latents.nonzero(as_tuple=True)
        return Pairs(dictionary, len(latents), tokens, columns, latents[tokens, columns])
    values, support = latents.values.flatten(), latents.support
    keys = support.tokens * support.dict_size + support.latents
    order = keys.argsort()
    order = order[(values != 0)[order]]
    return Pairs(dictionary, support.n_tokens, support.tokens[order], support.latents[order], values[order])


def joined_keys(one: Pairs, other: Pairs) -> Int[Tensor, "n"]:
    """Returns the keys of all pairs of two."""
    return torch.cat([one.keys(), other.keys()]).unique()


def decoded(pairs: Pairs, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n output_dim"]:
    """Returns what latents add to the outputs for x, without biases; linear in the values."""
    return linear_part(pairs.dictionary, SparseLatents(pairs.values, pairs.support()), x)


def linear_part(dictionary: Dictionary, latents: Latents, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n output_dim"]:
    """Returns what latents add to the outputs for x, without biases."""
    values = latents if isinstance(latents, Tensor) else latents.values
    return _decode(dictionary, latents, x) - _decode(dictionary, replace_values(latents, torch.zeros_like(values)), x)


def pulled(pairs: Pairs, x: Float[Tensor, "n dim"], gradient: Float[Tensor, "n output_dim"]) -> Float[Tensor, "pairs"]:
    """Returns the gradient of each value, by that of the outputs: the products with W_dec."""
    with torch.enable_grad():
        values = torch.zeros_like(pairs.values, requires_grad=True)
        out = decoded(pairs.with_values(values), x.detach())
        (found,) = torch.autograd.grad(out, values, gradient.to(out))
    return found


def one_by_one(pairs: Pairs, x: Float[Tensor, "n dim"]) -> Float[Tensor, "pairs output_dim"]:
    """Returns what each pair alone adds to the outputs of its token."""
    own = torch.arange(len(pairs.tokens), device=pairs.tokens.device)
    return decoded(pairs._replace(n_tokens=len(own), tokens=own), x[pairs.tokens])


def _decode(dictionary: Dictionary, latents: Latents, x: Tensor) -> Tensor:
    if isinstance(dictionary, Trainable):
        return dictionary.decode_latents(latents, x)
    return dictionary.decode_with(to_dense(latents), x)
