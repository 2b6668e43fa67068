"""Sums and dot products over (token, latent) pairs, without a tensor of pairs * width.

* Every sum over the kept latents of a token, or over the tokens of a latent, is an `embedding_bag`:
  a gather that adds up as it reads.
* Dot products for given pairs are a sampled product on the CPU; elsewhere the gradient of
  `embedding_bag` for its weights. In order of latent, each row of W is read from memory once, and
  only the activations must stay in the cache.

Letters: B tokens, F latents, D activation, P (token, latent) pairs.
"""

import functools
import warnings

import torch
from torch import Tensor

from dictionary_learning.latents import Segments, Support
from dictionary_learning.ops._precision import upcast

_REUSE = 128  # pairs for each row of a table from which on sums are computed a few columns at a time
READ_OFTEN = 64  # pairs for each row of W from which on dot products are computed in order of token
_COLUMNS = 96  # columns at a time: a table of 2,048 rows is then 0.75 MiB


def sum_over_kept(values: Tensor, support: Support, W: Tensor) -> Tensor:
    """Returns for each token the sum over its pairs of value * W_i: (B, D)."""
    return _weighted_sums(support.latents, W, support.offsets, values.flatten())


def sum_over_tokens(values: Tensor, support: Support, x: Tensor) -> Tensor:
    """Returns for each latent the sum over its pairs of value * x_n: (F, D)."""
    segments = support.segments
    by_latent = values.flatten().index_select(0, segments.order)  # (P,)
    return _weighted_sums(segments.tokens, x, segments.offsets, by_latent)


def totals(values: Tensor, support: Support) -> Tensor:
    """Returns for each latent the sum over its pairs of the value: (F,)."""
    segments = support.segments
    by_latent = values.flatten().index_select(0, segments.order)  # (P,)
    # unsafe: the offsets are valid, and to check them the host would have to wait for the device
    return torch.segment_reduce(by_latent, "sum", offsets=segments.offsets, axis=0, unsafe=True)


def pair_dots(x: Tensor, W: Tensor, support: Support) -> Tensor:
    """Returns x_n . W_i of each pair (n, i), in the shape of the support's indices."""
    x, rows = upcast(x), upcast(W)
    if x.device.type == "cpu" and support.indices.numel() >= READ_OFTEN * len(W):
        # W is read often enough to stay in the cache: no sort of the pairs by latent is needed
        return sampled_product(x, rows, support.offsets, support.latents).view(support.indices.shape)
    return dots(x, rows, support.segments).view(support.indices.shape)


def dots(x: Tensor, W: Tensor, segments: Segments) -> Tensor:
    """Returns x_n . W_i of each pair (n, i), in the order before the sort: (P,)."""
    if x.device.type == "cpu":
        products = sampled_product(W, x, segments.offsets, segments.tokens)
    else:
        offsets = torch.zeros(1, dtype=torch.long, device=x.device)  # unused when the bags are given
        arguments = (W, x.contiguous(), segments.tokens, offsets, segments.latents, 0)
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(*arguments)
    return torch.empty_like(products).index_copy_(0, segments.order, products)


def _weighted_sums(rows: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Returns the sum of weight * row of the table for each segment of `rows` (P,)."""
    table = upcast(table)

    def sums(columns: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            rows, columns.contiguous(), offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
        )

    if len(rows) < _REUSE * max(len(table), 1) or table.device.type != "cpu":
        return sums(table)
    # each row is read so often that it is worth having the table in the nearer cache, a few columns
    # at a time
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    for start in range(0, table.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        out[:, columns] = sums(table[:, columns])
    return out


def sampled_product(rows: Tensor, columns: Tensor, offsets: Tensor, indices: Tensor) -> Tensor:
    """Returns rows_i . columns_j for the j that the compressed rows list for each i: (P,)."""
    _silence_notice_of_sparse_layout()
    size, zeros = (len(rows), len(columns)), rows.new_zeros(len(indices))
    sampled = torch.sparse_csr_tensor(offsets, indices, zeros, size=size, device=rows.device, check_invariants=False)
    return torch.sparse.sampled_addmm(sampled, rows, columns.T, beta=0.0, out=sampled).values()


@functools.cache
def _silence_notice_of_sparse_layout() -> None:
    # PyTorch warns once in a process that the layout is in beta, which does not concern users of a
    # dictionary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
