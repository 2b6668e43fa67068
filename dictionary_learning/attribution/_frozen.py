"""A forward pass in which attention patterns and the denominators of norms are constants.

Both are taken at the functions of torch that compute them, whatever the architecture calls its
modules. The values of the pass stay as they are; a gradient no longer goes through them. What is
left between MLPs is linear: values that attention moves, and norms as factors.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_EPS = 1e-5


class Frozen(TorchFunctionMode):
    """Detaches attention patterns and the denominators of norms while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.n_attentions = 0
        """Patterns that were met."""
        self.n_norms = 0
        """Denominators that were met."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Computes what a function of torch does, with constants where they belong."""
        name, options = getattr(func, "__name__", ""), dict(kwargs or {})
        if name == "scaled_dot_product_attention":
            self.n_attentions += 1
            return func(*map(_detached, args[:2]), *args[2:], **{k: _query_or_key(k, v) for k, v in options.items()})
        if name == "softmax":  # of attention that is computed step by step
            self.n_attentions += 1
            return func(*args, **options).detach()
        if name == "rsqrt":
            self.n_norms += 1
            return func(*args, **options).detach()
        if name in ("layer_norm", "rms_norm"):
            self.n_norms += 1
            return _norm(*args, centers=name == "layer_norm", **options)
        return func(*args, **options)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _query_or_key(name: str, value: Any) -> Any:
    return _detached(value) if name in ("query", "key") else value


def _norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    *last: Any,
    centers: bool,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Returns what `layer_norm` does, or `rms_norm`, which has no bias before eps."""
    further: dict[str, Any] = {"bias": bias, "eps": eps}
    further |= zip(("bias", "eps") if centers else ("eps",), last, strict=False)
    shift, constant = further["bias"], further["eps"]
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    if constant is None:
        constant = _EPS if centers else torch.finfo(input.dtype).eps  # torch's defaults
    x = x - x.mean(dims, keepdim=True) if centers else x
    made = x * (x.square().mean(dims, keepdim=True) + constant).rsqrt().detach()
    made = made if weight is None else made * weight
    return (made if shift is None else made + shift).to(input.dtype)
