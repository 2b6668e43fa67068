"""Forms whose cost beyond the encoder's product grows with the pairs kept, not with tokens * latents.

The gradients are written by hand, once for all backends: each is one of the computations in `kernels.py`. Of latents that are
kept for being large only the positive get any. The bias that is subtracted from x gets its gradient by one product with a
vector, where x needs none.

Lower precision and autocast change nothing here: what is kept is computed and summed in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictionary_learning.latents import Latents, SparseLatents
from dictionary_learning.ops.chosen import Choose, chosen_pairs
from dictionary_learning.ops.dispatch import implements, reference_form
from dictionary_learning.ops.kernels import Kernels, Selected
from dictionary_learning.ops.precision import no_autocast, upcast


def register_sparse_forms(
    name: str,
    kernels: Kernels,
    serves_encode: Callable[[Tensor, Tensor, int], bool],
    serves_decode: Callable[[SparseLatents, Tensor], bool],
    serves_batch: Callable[[Tensor, Tensor, int], bool] | None = None,
    serves_where: Callable[[Tensor, Tensor], bool] | None = None,
) -> None:
    """Makes a backend of some kernels.

    Args:
        name: the backend's name.
        kernels: its computations.
        serves_encode: tells whether x and W can be served where so many latents of each token are kept.
        serves_decode: tells whether latents and W can be served.
        serves_batch: as `serves_encode`, where a batch is selected from together; by default the same.
        serves_where: tells whether x and W can be served where a rule of the caller's chooses; without it, none can.
    """
    serves_batch = serves_batch or serves_encode

    @implements("topk_encode", name, lambda x, W, b, k, center: serves_encode(x, W, k))
    def topk_encode(x: Tensor, W: Tensor, b: Tensor, k: int, center: Tensor | None) -> SparseLatents:
        return _encode(x, W, b, center, kernels, lambda x, W, b: kernels.top_k(x, W, b, k))

    @implements("batch_topk_encode", name, lambda x, W, b, k, center: serves_batch(x, W, k))
    def batch_topk_encode(x: Tensor, W: Tensor, b: Tensor, k: int, center: Tensor | None) -> SparseLatents:
        return _encode(x, W, b, center, kernels, lambda x, W, b: kernels.batch_top_k(x, W, b, k * len(x)))

    if serves_where is not None:
        supports = serves_where

        @implements("encode_where", name, lambda x, W, b, choose, center: supports(x, W))
        def encode_where(x: Tensor, W: Tensor, b: Tensor, choose: Choose, center: Tensor | None) -> Latents:
            with torch.no_grad(), no_autocast(x):
                pairs = chosen_pairs(_centered(x, center), upcast(W), upcast(b), choose)
            if pairs is None:  # so many are chosen that dense products are faster
                return reference_form("encode_where")(x, W, b, choose, center)
            selected = Selected(*pairs)
            return _encode(x, W, b, center, kernels, lambda *_: selected, rectified=False)

    @implements("sparse_decode", name, serves_decode)
    def sparse_decode(latents: SparseLatents, W: Tensor) -> Tensor:
        with no_autocast(W):
            return _Decode.apply(upcast(latents.values), W, latents, kernels)  # type: ignore[return-value]


def _encode(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    center: Tensor | None,
    kernels: Kernels,
    select: Callable[..., Selected],
    rectified: bool = True,
) -> SparseLatents:
    with no_autocast(x):
        with torch.no_grad():
            centered = _centered(x, center)
            selected = select(centered, W.detach(), b.detach())
        values = _EncodeAt.apply(x, center, W, b, centered, selected, kernels, rectified)
    return SparseLatents(values, selected.support)  # type: ignore[arg-type]


def _centered(x: Tensor, center: Tensor | None) -> Tensor:
    return (upcast(x) if center is None else upcast(x) - upcast(center)).contiguous()


class _EncodeAt(torch.autograd.Function):
    """W_enc (x - center) + b_enc, rectified or not, at a support where its values are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        center: Tensor | None,
        W: Tensor,
        b: Tensor,
        centered: Tensor,
        selected: Selected,
        kernels: Kernels,
        rectified: bool,
    ) -> Tensor:
        ctx.support, ctx.kernels, ctx.rectified = selected.support, kernels, rectified
        ctx.dtypes = [None if t is None else t.dtype for t in (x, center, W, b)]
        ctx.save_for_backward(centered, W, selected.values)
        return selected.values.view_as(selected.values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centered, W, values = ctx.saved_tensors
        support, kernels = ctx.support, ctx.kernels
        need_x, need_center, need_W, need_b = ctx.needs_input_grad[:4]
        if ctx.rectified:
            grad = grad * (values > 0)
        grad_b = kernels.totals(grad, support) if need_b or need_center else None
        grad_W = kernels.sum_over_tokens(grad, support, centered) if need_W else None
        grad_x = kernels.sum_over_kept(grad, support, W) if need_x else None
        grad_center = None
        if need_center and grad_b is not None:
            # the sum over tokens of W^T g is W^T of the sum: no gradient of each token's x is needed for it
            with no_autocast(W):
                grad_center = -(grad_b @ upcast(W))
        gradients = (grad_x, grad_center, grad_W, grad_b if need_b else None)
        cast = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *cast, None, None, None, None


class _Decode(torch.autograd.Function):
    """The sum of value * row of W_dec over the support."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, latents: SparseLatents, kernels: Kernels) -> Tensor:
        ctx.support, ctx.kernels = latents.support, kernels
        ctx.save_for_backward(values, W)
        return kernels.sum_over_kept(values, latents.support, W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W = ctx.saved_tensors
        support, kernels = ctx.support, ctx.kernels
        grad = grad.contiguous()
        grad_values = kernels.pair_dots(grad, W, support) if ctx.needs_input_grad[0] else None
        grad_W = kernels.sum_over_tokens(values, support, grad).to(W.dtype) if ctx.needs_input_grad[1] else None
        return grad_values, grad_W, None, None
