"""What a direction of the residual stream adds to the logits: the final norm and the unembedding.

Both are found by what the model does. The unembedding is what the model names as its output
embedding. The final norm is the last module whose output is, up to a factor, what the unembedding
reads, and whose input is the output of the last layer. How it scales and whether it centers is
measured on vectors.
"""

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning._module_io import hidden_or_none, input_or_none
from dictionary_learning.capture._logits import logits_of, named_unembedding
from dictionary_learning.errors import ModelError
from dictionary_learning.models import TracedModel

_ROUNDING = 1e-2
"""Relative difference that may be rounding, in bfloat16."""
_EXACT = 1e-3
"""The same in float32, with the small constant in a norm's root."""
_TOKENS = 4


class Unembedding(NamedTuple):
    """A linear map from directions of the residual stream to logits."""

    weight: Float[Tensor, "vocab dim"]
    scale: Float[Tensor, "dim"]
    """Of the final norm, and factors that follow it and the unembedding."""
    centers: bool
    """Whether the norm subtracts the mean over the dimensions."""

    def folded(self) -> Float[Tensor, "vocab dim"]:
        """Returns the whole map as one matrix, in float32."""
        scaled = self.weight.float() * self.scale
        return scaled - scaled.mean(dim=1, keepdim=True) if self.centers else scaled


@torch.no_grad()
def unembedding_of(model: TracedModel) -> Unembedding:
    """Returns the map from the residual stream to the logits, but for the norm of the token.

    Raises:
        ModelError: The model has no unembedding, or no norm between its last layer and it.
    """
    root: Any = model._original
    if any(parameter.device.type == "meta" for parameter in root.parameters()):
        raise ModelError(f"The weights of {model.name} are not in this process. Load it here for the logit lens.")
    unembedding = named_unembedding(root)
    if unembedding is None:
        raise ModelError(
            f"{model.name} names no unembedding with a matrix (vocab, dim), so its logits cannot be told from a "
            "direction. Give a language model of transformers."
        )
    seen = _record(root, unembedding, model)
    reads = seen.unembedding_input
    if reads is None:
        raise ModelError(f"{model.name} did not run its unembedding on a text. Give a language model that predicts.")
    for module, x, y, layer in reversed(seen.calls):
        factor = _factor(y, reads)
        if factor is None or not _is_same(x, layer):
            continue
        measured = _measured(module, x.shape[-1])
        if measured is not None:
            scale, centers = measured
            factor *= logits_of(root, unembedding, model.name).factor
            return Unembedding(unembedding.weight.detach(), scale.to(unembedding.weight.device) * factor, centers)
    raise ModelError(
        f"{model.name} has no norm between its last layer and its unembedding, so a direction of its residual stream "
        "says nothing of the logits by itself (an encoder like BERT has a layer there). Give a model that has one."
    )


class _Seen:
    """What ran in a forward pass: candidates for the norm, and what is on both sides of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Tensor, Tensor, Tensor | None]] = []
        """Each module, its input and output, and the output of the layer before it."""
        self.last_layer: Tensor | None = None
        self.unembedding_input: Tensor | None = None


def _record(root: nn.Module, unembedding: nn.Module, model: TracedModel) -> _Seen:
    """Runs a short text, and notes the modules that may be the final norm."""
    seen = _Seen()
    layers = {layer for module in root.modules() if isinstance(module, nn.ModuleList) for layer in module}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        y, x = hidden_or_none(output), input_or_none(module, args, kwargs)
        if module is unembedding:
            seen.unembedding_input = x
        elif module in layers:
            seen.last_layer = y
        elif x is not None and y is not None and x.shape == y.shape and not list(module.children()):
            seen.calls.append((module, x, y, seen.last_layer))

    modes = {module: module.training for module in root.modules()}
    handles = [module.register_forward_hook(after, with_kwargs=True) for module in modes]
    ids = torch.arange(_TOKENS, device=model.device).unsqueeze(0)
    is_seq2seq = getattr(getattr(root, "config", None), "is_encoder_decoder", False)
    try:
        root.eval()  # dropout would come between
        root(input_ids=ids, **({"decoder_input_ids": ids} if is_seq2seq else {}))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return seen


def _factor(y: Tensor, reads: Tensor) -> float | None:
    """Returns by which number an output was multiplied, if it was; T5 divides by a root."""
    if y.shape != reads.shape:
        return None
    a, b = y.float().flatten(), reads.float().flatten()
    factor = float(a @ b / (a @ a).clamp_min(torch.finfo(torch.float32).tiny))
    return factor if (b - factor * a).norm() <= _ROUNDING * b.norm() else None


def _is_same(x: Tensor, other: Tensor | None) -> bool:
    if other is None or x.shape != other.shape:
        return False
    return bool((x.float() - other.float()).norm() <= _ROUNDING * other.float().norm())


def _measured(norm: nn.Module, dim: int) -> tuple[Tensor, bool] | None:
    """Returns the scale of a norm, and whether it centers; None if a module is no norm."""
    module = copy.deepcopy(norm).float().cpu()
    generator = torch.Generator().manual_seed(0)
    # away from zero, by which is divided, and large against the constant in the root
    first, size = (100 * (torch.rand(1, dim, generator=generator) + 0.5) for _ in range(2))
    second = size * torch.where(torch.rand(1, dim, generator=generator) < 0.5, -1.0, 1.0)
    offset = module(torch.zeros(1, dim))
    for centers in (False, True):
        a, b = (_normalized(x, centers) for x in (first, second))
        safe = torch.where(a.abs() > 1e-3, a, 1.0)
        scale = (module(first) - offset) / safe  # (1, dim)
        known = a.abs() > 1e-3
        made = module(second) - offset
        if ((made - scale * b) * known).norm() <= _EXACT * (made * known).norm():
            if not bool(known.all()):  # a dimension that was at the mean: the other vector tells
                scale = torch.where(known, scale, made / torch.where(b.abs() > 1e-3, b, 1.0))
            return scale.squeeze(0).detach(), centers
    return None


def _normalized(x: Tensor, centers: bool) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True) if centers else x
    return x / x.square().mean(dim=-1, keepdim=True).sqrt()
