"""The flags of `encode` in dictionary-learning, which change what it returns."""

from typing import Any

from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries._named import (
    AutoEncoderTopK,
    BatchTopKSAE,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense

_FLAGS: dict[type, tuple[str, ...]] = {
    AutoEncoderTopK: ("return_topk", "use_threshold"),
    BatchTopKSAE: ("return_active", "use_threshold"),
    MatryoshkaBatchTopKSAE: ("return_active", "use_threshold"),
    GatedAutoEncoder: ("return_gate",),
    JumpReluAutoEncoder: ("output_pre_jump",),
}
"""The flags of each class, in the order of their positions."""


def encode_with_flags(
    ae: Any, x: Float[Tensor, "*batch activation_dim"], positional: tuple[bool, ...], named: dict[str, bool]
) -> Any:
    """Returns what `ae.encode(x, ...)` returns in dictionary-learning.

    return_topk: (latents, kept values, kept indices, relu of all pre-activations).
    return_active: (latents, which latents fire on any token, relu of all pre-activations).
    return_gate: (latents, relu of the gates). output_pre_jump: (latents, relu of pre-activations).
    use_threshold: latents above the estimated threshold; for BatchTopK the default, and False for
        the
    k * batch largest.

    Raises:
        ConfigError: The class has no such flag.
    """
    names = next((names for cls, names in _FLAGS.items() if isinstance(ae, cls)), ())
    flags = {**dict(zip(names, positional, strict=False)), **named}
    unknown = [name for name in flags if name not in names]
    if unknown or len(positional) > len(names):
        known = ", ".join(names) or "none"
        raise ConfigError(
            f"{type(ae).__name__}.encode got {', '.join(unknown) or f'{len(positional)} flags'}; its flags are: "
            f"{known}."
        )
    if isinstance(ae, AutoEncoderTopK):
        if flags.get("use_threshold"):
            norms = ae.ranking_norms() if ae.rank_by_norm else 1.0
            return ae.nonlinearity.above_threshold(ae.pre_activations(x) * norms) / norms
        return _top_k(ae, x) if flags.get("return_topk") else ae.encode_dense(x)
    if isinstance(ae, (BatchTopKSAE, MatryoshkaBatchTopKSAE)):
        if flags.get("use_threshold", True):
            latents = ae.encode_dense(x)
        else:
            flat, lead = pack([x], "* dim")  # (batch, activation_dim)
            (latents,) = unpack(to_dense(ae.encode_sparse(flat)), lead, "* latents")
            latents = ae.in_use(latents) if isinstance(ae, MatryoshkaBatchTopKSAE) else latents
        if not flags.get("return_active"):
            return latents
        return latents, (latents > 0).reshape(-1, ae.dict_size).any(0), ae.pre_activations(x).relu()
    latents = ae.encode_dense(x)
    if flags.get("return_gate"):
        return latents, ae.nonlinearity.gate(ae.pre_activations(x))
    return (latents, ae.pre_activations(x).relu()) if flags.get("output_pre_jump") else latents


def _top_k(ae: AutoEncoderTopK, x: Tensor) -> tuple[Tensor, ...]:
    flat, lead = pack([x], "* dim")  # (batch, activation_dim)
    kept = ae.encode_sparse(flat)
    values, order = kept.values.sort(dim=-1, descending=True)
    sparse = (to_dense(kept), values, kept.indices.gather(-1, order))
    dense, values, indices = (unpack(tensor, lead, "* latents")[0] for tensor in sparse)
    return dense, values, indices, ae.pre_activations(x).relu()
