"""What a model makes of its unembedding's outputs: a factor, or a cap, before they are logits.

Granite divides by a number, Cohere multiplies by one, and Gemma 2 bends them by tanh. There is no
list of architectures: numbers are put in the place of what the unembedding returns, and the logits
show what becomes of them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import hidden_or_none
from dictionary_learning.errors import ModelError

_TOKENS = 4
_SMALL, _LARGE = 2.0**-10, 128.0
"""Far below any cap, where a cap is a factor; and far above all that are known (30, 50)."""
_ROUNDING = 1e-2
"""Relative difference that may be rounding, in bfloat16."""


class Logits(NamedTuple):
    """How logits depend on what the unembedding returns."""

    factor: float
    """By which small values are multiplied, and with no cap all."""
    is_capped: bool
    """Whether large ones grow more slowly."""


def named_unembedding(root: Any) -> Any:
    """Returns the module with a matrix (vocab, dim) that a model names, or None."""
    try:
        found = root.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # not a model of transformers
        return None
    return found if getattr(getattr(found, "weight", None), "ndim", 0) == 2 else None


@torch.no_grad()
def logits_of(root: Any, unembedding: nn.Module, name: str) -> Logits:
    """Returns what happens to the outputs of an unembedding, by a pass over a short text.

    Raises:
        ModelError: A logit depends on others, or not on what the unembedding returns; or the
            model's weights are not in this process.
    """
    if any(parameter.device.type == "meta" for parameter in root.parameters()):
        raise ModelError(f"The weights of {name} are not in this process. Load it here.")
    given, made = _tried(root, unembedding)
    if given is None or made is None or made.shape != given.shape:
        raise ModelError(f"{name} did not return what its unembedding computes. Give a language model that predicts.")
    small, large, half = (made[1:] - made[0]).unbind(0)  # less what is added afterwards
    is_used = small.isfinite() & (small != 0)  # a model may have tokens that it never predicts
    some = given[1] * is_used
    small = torch.where(is_used, small, 0.0)
    factor = float(small @ some / (some @ some).clamp_min(torch.finfo(some.dtype).tiny))
    is_alone = _is_near(half[is_used], torch.where(given[3] != 0, large, 0.0)[is_used])
    if not factor or not _is_near(small, factor * some) or not is_alone:
        raise ModelError(
            f"The logits of {name} are neither a multiple of what its unembedding returns nor a cap of it, so that "
            "the part of a latent in them is not known. Give a model of which they are."
        )
    return Logits(factor, not _is_near(large[is_used], factor * given[2][is_used]))


def _tried(root: Any, unembedding: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Returns what is put in the place of the unembedding's outputs, and the logits (4, vocab)."""
    put: list[Tensor] = []

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.shape[:2] != (1, _TOKENS) or output.ndim != 3:
            return None
        ramp = torch.linspace(-1, 1, output.shape[-1], dtype=torch.float32, device=output.device)
        every_second = torch.arange(len(ramp), device=ramp.device) % 2
        rows = torch.stack([0 * ramp, _SMALL * ramp, _LARGE * ramp, _LARGE * ramp * every_second])
        put.append(rows.to(output.dtype))
        return put[-1].unsqueeze(0)

    modes = {module: module.training for module in root.modules()}
    handle = unembedding.register_forward_hook(replace)
    ids = torch.arange(_TOKENS, device=next(iter(unembedding.parameters())).device).unsqueeze(0)
    is_seq2seq = getattr(getattr(root, "config", None), "is_encoder_decoder", False)
    try:
        root.eval()
        output = root(input_ids=ids, **({"decoder_input_ids": ids} if is_seq2seq else {}))
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    found = getattr(output, "logits", None)
    found = hidden_or_none(output) if found is None else found
    if not put or found is None:
        return None, None
    return put[-1].double(), found[0].to(put[-1].device).double()


def _is_near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _ROUNDING * b.norm())
