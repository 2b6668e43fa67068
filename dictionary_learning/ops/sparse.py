"""Forms whose cost beyond the encoder's product grows with batch * k, not with batch * dict_size.

Letters: B tokens, F latents, D activation, K kept.

* Selection. Where bfloat16 products are fast, all B*F pre-activations are computed in bfloat16, the best K + margin
  of each token are taken, and those are computed again in float32 and ranked. A token whose k-th is not clear of what the
  others could be is computed again in whole: the kept set is that of float32.
* Every sum over the kept latents of a token, or over the tokens of a latent, is an `embedding_bag`: a gather that
  adds up as it reads.
* Gradients of the kept values are dot products for B*K (token, latent) pairs; PyTorch has them as the gradient of
  `embedding_bag` for its weights.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictionary_learning.hardware import bfloat16_is_fast
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops.dispatch import implements

_DENSE_FRACTION = 1 / 8
"""From this share of kept latents on, dense products are as fast."""
_MARGIN = 1.75
"""Candidates for each kept latent. With 1.25, one row in ten of real activations is in doubt, and costs more than the candidates save."""
_LEAST_MARGIN = 8
_SAFETY = 2.0
"""How much larger the rounding error of a latent that is no candidate may be than the largest seen among a token's candidates."""
_GROUP = 16
"""Latents in a group of the coarse selection."""
_CHUNK_ELEMENTS = 1 << 23
"""Pre-activations held at once: 16 MiB of bfloat16 stay in the cache, and below the size from which the C library
asks the kernel for fresh pages at every allocation."""


def _float32(*tensors: Tensor) -> bool:
    # autocast would turn the products of a hand-written backward into another type than its forward had
    return all(t.dtype == torch.float32 for t in tensors) and not torch.is_autocast_enabled(tensors[0].device.type)


@implements("topk_encode", "sparse", lambda x, W, b, k: _float32(x, W, b) and k <= _DENSE_FRACTION * W.shape[0])
def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    with torch.no_grad():
        values, indices = _select(x.contiguous(), W_enc, b_enc, k)
    support = Support(indices, W_enc.shape[0])
    return SparseLatents(_EncodeAt.apply(x, W_enc, b_enc, values, support), support)  # type: ignore[arg-type]


@implements("sparse_decode", "sparse", lambda latents, W: _float32(latents.values, W))
def sparse_decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    return _Decode.apply(latents.values, W_dec, latents.support)  # type: ignore[return-value]


def _select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of relu(x W_enc^T + b_enc) of each row, and their indices, in descending order."""
    n_candidates = max(int(k * _MARGIN), k + _LEAST_MARGIN)
    # to check the candidates, the host looks at results: on an accelerator it would have to wait for them
    if x.device.type != "cpu" or not bfloat16_is_fast("cpu") or n_candidates >= W_enc.shape[0]:
        values, indices = _largest(x, W_enc, b_enc, k)
        return values.relu_(), indices
    coarse, candidates = _largest(x.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16(), n_candidates)
    exact = _pair_dots(x, W_enc, candidates).add_(b_enc[candidates])  # (B, n_candidates)
    values, order = exact.topk(k, dim=-1)
    indices = candidates.gather(1, order)
    # a latent that is no candidate has at most this pre-activation: the least candidate's, and a rounding error
    error = (coarse.float() - exact).abs().amax(1)
    others = coarse.float().amin(1) + _SAFETY * error
    doubtful = ((values[:, -1] < others) & (others > 0)).nonzero().squeeze(1)
    if len(doubtful):
        values[doubtful], indices[doubtful] = _largest(x[doubtful], W_enc, b_enc, k)
    return values.relu_(), indices


def _largest(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest pre-activations of each row and their indices, a chunk of rows at a time."""
    weight = W_enc.T
    in_groups = x.dtype == torch.bfloat16 and W_enc.shape[0] % _GROUP == 0 and k < W_enc.shape[0] // _GROUP
    largest = _largest_by_group if in_groups else torch.topk
    chunks = x.split(max(1, _CHUNK_ELEMENTS // W_enc.shape[0]))
    parts = [largest(torch.addmm(b_enc, rows, weight), k) for rows in chunks]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _largest_by_group(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of each row of bfloat16 and their indices, in no order; of negative ones, any.

    The k largest lie in the k groups with the largest maxima, so only those are searched. A group is every (F / 16)-th
    latent: the maxima are then an elementwise maximum of 16 long rows. Positive bfloat16 are ordered as their bits are
    when read as whole numbers, which are faster to compare, and negative ones are below them.
    """
    bits = pre.view(torch.int16)
    n_groups = pre.shape[1] // _GROUP
    groups = bits.view(-1, _GROUP, n_groups).amax(1).topk(k, dim=-1, sorted=False).indices  # (B, k)
    members = torch.arange(_GROUP, device=pre.device) * n_groups
    indices = (groups.unsqueeze(1) + members.unsqueeze(1)).flatten(1)  # (B, 16 k)
    found = bits.gather(1, indices).topk(k, dim=-1, sorted=False)
    return found.values.view(torch.bfloat16), indices.gather(1, found.indices)


class _EncodeAt(torch.autograd.Function):
    """relu(W_enc x + b_enc) at a support where its values are known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, values: Tensor, support: Support) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(x, W_enc, values)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W_enc, values = ctx.saved_tensors
        support: Support = ctx.support
        grad = grad * (values > 0)
        need_x, need_W, need_b = ctx.needs_input_grad[:3]
        grad_x = _sum_over_kept(grad, support, W_enc) if need_x else None
        grad_W = _sum_over_tokens(grad, support, x) if need_W else None
        grad_b = None
        if need_b:
            grad_b = grad.new_zeros(support.dict_size).index_add_(0, support.indices.flatten(), grad.flatten())
        return grad_x, grad_W, grad_b, None, None


class _Decode(torch.autograd.Function):
    """The sum of value * row of W_dec over the support."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, support: Support) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(values, W_dec)
        return _sum_over_kept(values, support, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec = ctx.saved_tensors
        support: Support = ctx.support
        grad = grad.contiguous()
        grad_values = _pair_dots_by_latent(grad, W_dec, support) if ctx.needs_input_grad[0] else None
        grad_W = _sum_over_tokens(values, support, grad) if ctx.needs_input_grad[1] else None
        return grad_values, grad_W, None


def _sum_over_kept(values: Tensor, support: Support, table: Tensor) -> Tensor:
    """Returns for each token the sum over its kept latents of value * row of the table (F, D)."""
    return torch.nn.functional.embedding_bag(support.indices, table, per_sample_weights=values.contiguous(), mode="sum")


def _sum_over_tokens(values: Tensor, support: Support, table: Tensor) -> Tensor:
    """Returns for each latent the sum over its tokens of value * row of the table (B, D)."""
    segments = support.segments
    return torch.nn.functional.embedding_bag(
        segments.tokens,
        table.contiguous(),
        segments.offsets,
        per_sample_weights=values.flatten()[segments.order],
        mode="sum",
        include_last_offset=True,
    )


def _pair_dots(x: Tensor, W: Tensor, indices: Tensor) -> Tensor:
    """Returns x_n . W_i for the latents i of each token n, (B, K)."""
    n_tokens, k = indices.shape
    bags = torch.arange(n_tokens, device=x.device).repeat_interleave(k)
    return _bag_weight_gradient(x, W, indices.flatten(), bags).view(n_tokens, k)


def _pair_dots_by_latent(x: Tensor, W: Tensor, support: Support) -> Tensor:
    """The same as `_pair_dots`, read latent by latent: W is streamed once, and only x must stay in the cache."""
    segments = support.segments
    dots = _bag_weight_gradient(W, x, segments.tokens, segments.latents)
    return torch.empty_like(dots).index_copy_(0, segments.order, dots).view(support.indices.shape)


def _bag_weight_gradient(bag_rows: Tensor, table: Tensor, indices: Tensor, bags: Tensor) -> Tensor:
    """Returns bag_rows[bags] . table[indices] for each pair, without gathering either."""
    offsets = torch.zeros(1, dtype=indices.dtype, device=indices.device)  # unused when the bags are given
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(bag_rows, table, indices, offsets, bags, 0)
