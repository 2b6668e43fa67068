"""Encoding and decoding at the cost of the encoder's product and of the pairs that are kept.

`TorchBackend` does it in plain PyTorch: for a CPU, and for CUDA without Triton.

Gradients are written by hand, once for all sparse backends: each is one of the backend's six
computations. Where latents are kept because they are large, only the positive ones get a gradient.

Letters: B tokens, F latents, D activation, K kept, P (token, latent) pairs.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning._usual_state import usual_state
from dictionary_learning.latents import Latents, SparseLatents, Support
from dictionary_learning.ops import _pairs as pairs, _selection as selection
from dictionary_learning.ops._backend import REFERENCE, Backend, Choose, Encoder
from dictionary_learning.ops._columns import Columns, columns_to_keep
from dictionary_learning.ops._joint import product_for
from dictionary_learning.ops._precision import no_autocast, upcast


class SparseBackend(Backend):
    """A backend of six computations, for few kept latents; for many it uses the reference.

    The computations take tensors of any precision and sum in float32 at least. None is
    differentiated.
    """

    dense_from: ClassVar[Mapping[str, float]]
    """For each device type, the share of kept latents from which on dense products are as fast."""
    batch_on: ClassVar[Collection[str]]
    """Device types on which `batch_top_k` is implemented; elsewhere it uses the reference."""
    where_on: ClassVar[Collection[str]]  # the same for `encode_where`

    @abstractmethod
    def select(
        self, x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        """Returns the k largest of relu(x W^T + b) of each token, in no order.

        x (B, D) is contiguous, in float32 at least. `product` is x W^T + b (B, F), maybe in low
        precision, where others computed it. `columns` may be filled in.
        """

    @abstractmethod
    def select_batch(
        self, x: Tensor, W: Tensor, b: Tensor, n: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        """Returns the n largest of relu(x W^T + b) of all tokens together, ragged."""

    @abstractmethod
    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        """Returns x_n . W_i of each pair (n, i), in the shape of the support's indices."""

    @abstractmethod
    def sum_over_kept(self, values: Tensor, support: Support, W: Tensor) -> Tensor:
        """Returns for each token the sum over its pairs of value * W_i: (B, D)."""

    @abstractmethod
    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        """Returns for each latent the sum over its pairs of value * x_n: (F, D)."""

    @abstractmethod
    def totals(self, values: Tensor, support: Support) -> Tensor:
        """Returns for each latent the sum over its pairs of the value: (F,)."""

    @usual_state()
    def top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        if k > self.dense_from[x.device.type] * len(encoder.W):
            return REFERENCE.top_k(x, encoder, k)
        with torch.no_grad(), no_autocast(x):
            centered = encoder.centered(x).contiguous()
            others = product_for(x, encoder.W), columns_to_keep(x, encoder)
            kept = self.select(centered, encoder.W, encoder.b, k, *others)
        return self._differentiable(x, encoder, centered, kept)

    @usual_state()
    def batch_top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        device = x.device.type
        if device not in self.batch_on or k > self.dense_from[device] * len(encoder.W):
            return REFERENCE.batch_top_k(x, encoder, k)
        with torch.no_grad(), no_autocast(x):
            centered = encoder.centered(x).contiguous()
            others = product_for(x, encoder.W), columns_to_keep(x, encoder)
            kept = self.select_batch(centered, encoder.W, encoder.b, k * len(x), *others)
        return self._differentiable(x, encoder, centered, kept)

    @usual_state()
    def encode_where(self, x: Tensor, encoder: Encoder, choose: Choose) -> Latents:
        if x.device.type not in self.where_on:
            return REFERENCE.encode_where(x, encoder, choose)
        with torch.no_grad(), no_autocast(x):
            centered = encoder.centered(x).contiguous()
            kept = selection.chosen_pairs(centered, upcast(encoder.W), upcast(encoder.b), choose)
        if kept is None:  # so many are chosen that dense products are faster
            return REFERENCE.encode_where(x, encoder, choose)
        return self._differentiable(x, encoder, centered, kept, is_rectified=False)

    @usual_state()
    def decode(self, latents: Latents, W_dec: Tensor) -> Tensor:
        if isinstance(latents, Tensor):
            return REFERENCE.decode(latents, W_dec)
        n_dense = self.dense_from[W_dec.device.type] * len(W_dec) * max(latents.support.n_tokens, 1)
        if latents.indices.numel() > n_dense:
            return REFERENCE.decode(latents, W_dec)
        with no_autocast(W_dec):
            return cast(Tensor, _Decode.apply(upcast(latents.values), W_dec, latents.support, self))

    def _differentiable(
        self, x: Tensor, encoder: Encoder, centered: Tensor, kept: SparseLatents, *, is_rectified: bool = True
    ) -> SparseLatents:
        """Returns the kept values with gradients to x and the encoder."""
        W, b, center = encoder
        with no_autocast(x):
            values = cast(Tensor, _EncodeAt.apply(x, center, W, b, centered, kept, self, is_rectified))
        return SparseLatents(values, kept.support)


class TorchBackend(SparseBackend):
    """The sparse backend in plain PyTorch.

    `batch_top_k` and `encode_where` look at what they find, for which the host would have to wait
    for an accelerator: they are for the CPU only.
    """

    # CPU: steps with 14 % of the latents kept take half of the time, and with 45 % the same
    # (docs/performance.md). CUDA: by cost model
    dense_from: ClassVar = {"cpu": 1 / 2, "cuda": 1 / 128}
    batch_on = where_on = ("cpu",)

    # static functions implement the methods, so that no call lies between the two
    select = staticmethod(selection.top_k)  # pyright: ignore[reportAssignmentType]
    select_batch = staticmethod(selection.batch_top_k)  # pyright: ignore[reportAssignmentType]
    pair_dots = staticmethod(pairs.pair_dots)  # pyright: ignore[reportAssignmentType]
    sum_over_kept = staticmethod(pairs.sum_over_kept)  # pyright: ignore[reportAssignmentType]
    sum_over_tokens = staticmethod(pairs.sum_over_tokens)  # pyright: ignore[reportAssignmentType]
    totals = staticmethod(pairs.totals)  # pyright: ignore[reportAssignmentType]

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return device_type in self.dense_from

    def describe(self, device_type: str) -> str:
        if device_type not in self.dense_from:
            return f"made for {' and '.join(self.dense_from)}"
        share = f"where at most 1/{round(1 / self.dense_from[device_type])} of the latents are kept"
        if device_type != "cpu":
            return f"{share}; selection by torch.topk in float32"
        if bfloat16_is_fast("cpu"):
            return f"{share}; selection in bfloat16, whose products are faster here, ranked again in float32"
        return f"{share}; selection in float32: bfloat16 products are not faster on this CPU"


class _EncodeAt(torch.autograd.Function):
    """W (x - center) + b, rectified or not, at a support where its values are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        center: Tensor | None,
        W: Tensor,
        b: Tensor,
        centered: Tensor,
        kept: SparseLatents,
        backend: SparseBackend,
        is_rectified: bool,
    ) -> Tensor:
        ctx.support, ctx.backend, ctx.is_rectified = kept.support, backend, is_rectified
        ctx.dtypes = [None if t is None else t.dtype for t in (x, center, W, b)]
        ctx.save_for_backward(centered, W, kept.values)
        return kept.values.view_as(kept.values)  # a new tensor: autograd must not return an input as it is

    @staticmethod
    @once_differentiable
    @usual_state()
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centered, W, values = ctx.saved_tensors
        support, backend = ctx.support, ctx.backend
        need_x, need_center, need_W, need_b = ctx.needs_input_grad[:4]
        if ctx.is_rectified:
            grad = grad * (values > 0)  # (B, K) or (P,)
        grad_b = backend.totals(grad, support) if need_b or need_center else None  # (F,)
        grad_W = backend.sum_over_tokens(grad, support, centered) if need_W else None  # (F, D)
        grad_x = backend.sum_over_kept(grad, support, W) if need_x else None  # (B, D)
        grad_center = None
        if need_center and grad_b is not None:
            # the sum over tokens of W^T g is W^T of the sum: one product with a vector, without any
            # gradient of x
            with no_autocast(W):
                grad_center = -(grad_b @ upcast(W))  # (D,)
        gradients = (grad_x, grad_center, grad_W, grad_b if need_b else None)
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *cast_back, None, None, None, None


class _Decode(torch.autograd.Function):
    """The sum of value * row of W_dec over the support."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, support: Support, backend: SparseBackend) -> Tensor:
        ctx.support, ctx.backend = support, backend
        ctx.save_for_backward(values, W)
        return backend.sum_over_kept(values, support, W)

    @staticmethod
    @once_differentiable
    @usual_state()
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W = ctx.saved_tensors
        support, backend = ctx.support, ctx.backend
        grad = grad.contiguous()
        grad_values = backend.pair_dots(grad, W, support) if ctx.needs_input_grad[0] else None
        grad_W = backend.sum_over_tokens(values, support, grad).to(W.dtype) if ctx.needs_input_grad[1] else None
        return grad_values, grad_W, None, None
