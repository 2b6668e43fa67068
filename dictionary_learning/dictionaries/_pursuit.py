"""Gradient pursuit: latents that reconstruct activations with a given decoder, without encoder.

A round needs only the products c = W r of the residual r with the rows of W. They are computed once
and then updated: if the weights of the rows chosen so far change by u, c changes by -W (W^T u).
That is a sum of rows of the Gram matrix W W^T if there are so many tokens that the matrix is
worthwhile, else two products.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops._precision import no_autocast, upcast

Spread = Callable[[Tensor, Tensor], Tensor]
"""Takes weights and positions (rows, t); returns <their decoding, atom> (rows, atoms)."""

_LARGEST_GRAM = 16_384
"""Latents up to which all products of decoder rows are stored: 1 GiB."""
_CHUNK_ELEMENTS = 1 << 24
"""Elements of the largest tensor of a chunk of tokens: 64 MiB."""
_DONE = 1e-6
"""A token is done if no correlation exceeds this share of its first: the rest is rounding."""


@checked()
@torch.no_grad()
def gradient_pursuit(
    x: Float[Tensor, "batch dim"],
    W_dec: Float[Tensor, "dict_size dim"],
    target_l0: int,
    *,
    candidates: int | None = None,
) -> SparseLatents:
    """Returns at most `target_l0` positive latents of each token that decode to about x; ragged.

    r = x;  target_l0 times: S = S + {argmax <d_i, r>},  g_i = <d_i, r> on S,
    f = relu(f + g |g|^2 / |W^T g|^2),  r = x - W^T f

    A row joins S only if its correlation is positive; a token without one above rounding is done.
    The row may be in S already: the round then only updates the weights. Rows should have unit
    norm, and x should not contain the decoder's bias. A token with a non-finite value gets no
    latents.
    Blumensath and Davies 2008, "Gradient pursuits"; with dictionaries of language models: Smith
    2024, "Inference-time optimisation" (Progress update 1 of Google DeepMind's interpretability
    team).

    Args:
        target_l0: Rounds, and so the largest number of latents of a token.
        candidates: Latents are chosen among this many with the largest correlations with x itself.
            A round then costs candidates * dim for each token, and misses directions that other
            latents hide. None chooses among all: a round costs a product with W_dec, or a sum of
            rows of the Gram matrix. On a CPU 8,192 latents cost as much as 256 candidates (dim 512,
            20 rounds), so candidates are worthwhile above that.

    Raises:
        ConfigError: there are fewer candidates than target_l0, or x and W_dec do not fit each
            other.
    """
    shapes = [list(getattr(tensor, "shape", ())) for tensor in (x, W_dec)]  # W_dec may be a dictionary by mistake
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ConfigError(
            f"Gradient pursuit got x of shape {shapes[0]} and a {type(W_dec).__name__} of shape {shapes[1]} for W_dec; "
            "it needs tensors (batch, dim) and (dict_size, dim), as `dictionary.W_dec`."
        )
    if candidates is not None and candidates < target_l0:
        raise ConfigError(f"Got candidates={candidates} for target_l0={target_l0}; give as many or more.")
    dtype = torch.promote_types(upcast(x).dtype, upcast(W_dec).dtype)
    W, n_latents = W_dec.to(dtype), W_dec.shape[0]
    width = n_latents if candidates is None or candidates >= n_latents else candidates
    with no_autocast(W):
        # the Gram matrix costs as much as rounds of products for dict_size tokens
        gram = W @ W.T if width == n_latents <= min(_LARGEST_GRAM, len(x) * target_l0) else None
        n_rows = max(1, _CHUNK_ELEMENTS // (n_latents if width == n_latents else max(n_latents, width * W.shape[1])))
        parts = [_pursue_rows(rows.to(dtype), W, gram, target_l0, width) for rows in x.split(n_rows)]
    values, latents, counts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseLatents(values, Support(latents, n_latents, offsets))


def _pursue_rows(x: Tensor, W: Tensor, gram: Tensor | None, n_rounds: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the positive weights of some tokens, their latents, and the number for each token."""
    correlations, candidates = x @ W.T, None  # (rows, dict_size)
    if width < len(W):
        correlations, candidates = correlations.topk(width, dim=1, sorted=False)
    weights, latents = _pursue(correlations, n_rounds, _spread(W, gram, candidates))
    if candidates is not None:
        latents = candidates.gather(1, latents)
    kept = weights > 0
    return weights[kept], latents[kept], kept.sum(1)


def _spread(W: Tensor, gram: Tensor | None, candidates: Tensor | None) -> Spread:
    def bag(table: Tensor, latents: Tensor, weights: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(latents, table, per_sample_weights=weights, mode="sum")

    if candidates is not None:
        atoms = W[candidates]  # (rows, width, dim)
        return lambda weights, at: torch.einsum("nwd,nd->nw", atoms, bag(W, candidates.gather(1, at), weights))
    if gram is not None:
        return lambda weights, at: bag(gram, at, weights)
    return lambda weights, at: bag(W, at, weights) @ W.T


def _pursue(correlations: Tensor, n_rounds: int, spread: Spread) -> tuple[Tensor, Tensor]:
    """Returns weights and positions (rows, rounds); repeated positions have one weight."""
    n, device = len(correlations), correlations.device
    at = torch.zeros(n, n_rounds, dtype=torch.long, device=device)
    weights = correlations.new_zeros(n, n_rounds)
    in_use = torch.zeros(n, n_rounds, dtype=torch.bool, device=device)
    least = _DONE * correlations.amax(1, keepdim=True)
    for t in range(n_rounds):
        best, index = correlations.max(1, keepdim=True)
        active = (best > least) & (best > 0)
        if not bool(active.any()):
            break
        in_use[:, t : t + 1] = active & ~((at == index) & in_use).any(1, keepdim=True)
        at[:, t : t + 1] = index
        here = at[:, : t + 1]
        gradient = torch.where(active & in_use[:, : t + 1], correlations.gather(1, here), 0.0)
        change = spread(gradient, here)
        length = (gradient * change.gather(1, here)).sum(1, keepdim=True)  # |W^T g|^2
        size = torch.where(length > 0, gradient.square().sum(1, keepdim=True) / length, 0.0)
        moved = weights[:, : t + 1] + size * gradient
        weights[:, : t + 1] = moved.clamp_min(0)
        correlations = correlations - size * change
        cut = moved.clamp_max(0)
        if bool((cut < 0).any()):  # add back the part by which weights fell below zero
            correlations = correlations + spread(cut, here)
    return weights, at
