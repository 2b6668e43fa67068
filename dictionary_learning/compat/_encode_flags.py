"""The flags of `encode` in dictionary-learning, which change what it returns."""

from typing import Any

from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries._named import (
    AutoEncoder,
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
    GatedAutoEncoder: ("return_gate", "normalize_decoder"),
    JumpReluAutoEncoder: ("output_pre_jump",),
}
"""The flags of each class, in the order of their positions."""


def encode_with_flags(
    ae: Any, x: Float[Tensor, "*batch activation_dim"], positional: tuple[bool, ...], named: dict[str, bool]
) -> Any:
    """Returns what `ae.encode(x, ...)` returns in dictionary-learning.

    return_topk: (latents, kept values, kept indices, relu of all pre-activations).
    return_active: (latents, which latents fire on any token, relu of all pre-activations).
    return_gate: (latents, relu of the gates). output_pre_jump: (latents, pre-activations).
    use_threshold: latents above the estimated threshold; for BatchTopK the default, and False for
    the k * batch largest. normalize_decoder: latents times decoder norms.

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
            above = ae.nonlinearity.above_threshold(ae.pre_activations(x) * norms) / norms
            return (above, *_top_k(ae, x)[1:]) if flags.get("return_topk") else above
        return _top_k(ae, x) if flags.get("return_topk") else ae.encode_dense(x)
    if isinstance(ae, (BatchTopKSAE, MatryoshkaBatchTopKSAE)):
        if flags.get("use_threshold", True):
            latents = ae.encode_dense(x)
        else:
            flat, lead = pack([x], "* dim")  # (batch, activation_dim)
            (latents,) = unpack(to_dense(ae.kept(flat, ae.keeps)), lead, "* latents")
            latents = ae.in_use(latents) if isinstance(ae, MatryoshkaBatchTopKSAE) else latents
        if not flags.get("return_active"):
            return latents
        return latents, (latents > 0).reshape(-1, ae.dict_size).any(0), ae.pre_activations(x).relu()
    latents = ae.encode_dense(x)
    if flags.get("normalize_decoder"):
        latents = latents * ae.decoder_norms()
    if flags.get("return_gate"):
        return latents, ae.nonlinearity.gate(ae.pre_activations(x))
    return (latents, ae.pre_activations(x)) if flags.get("output_pre_jump") else latents


def decode_with_flags(ae: Any, latents: Any, x: Any, named: dict[str, Any]) -> Tensor:
    """Returns what `ae.decode(...)` returns in dictionary-learning.

    Latents are named f or x there. normalize_decoder (of a gated autoencoder): latents are those of
    `encode(x, normalize_decoder=True)`.

    Raises:
        ConfigError: There is no such argument, or there are no latents.
    """
    further = dict(named)
    flag = x if isinstance(x, bool) else further.pop("normalize_decoder", False)
    given = further.pop("f", None) if latents is None else latents
    given = x if given is None and not isinstance(x, bool) else given
    if further or (flag and not isinstance(ae, GatedAutoEncoder)) or not isinstance(given, Tensor):
        got = ", ".join(further) or ("normalize_decoder" if flag else "no latents")
        raise ConfigError(f"{type(ae).__name__}.decode got {got}; it takes latents (also named f), and x.")
    return ae.decode_dense(given / ae.decoder_norms() if flag else given)


def forward_with_flags(ae: Any, x: Tensor, output_features: bool, older: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Returns what `ae(x, ...)` returns in dictionary-learning.

    ghost_mask (of AutoEncoder): also exp(pre-activations) * mask, decoded without b_dec.
    normalize_decoder (of a gated autoencoder): latents are returned times decoder norms.

    Raises:
        ConfigError: The class has no such flag.
    """
    own = {AutoEncoder: "ghost_mask", GatedAutoEncoder: "normalize_decoder"}
    name = next((name for cls, name in own.items() if isinstance(ae, cls)), None)
    flags = {**({} if name is None else dict(zip((name,), older, strict=False))), **named}
    if set(flags) != {name} or len(older) > 1:
        raise ConfigError(f"{type(ae).__name__} got {', '.join(named) or older!r}; it takes x and output_features.")
    value, latents = next(iter(flags.values())), ae.encode(x)
    x_hat = ae.decode(latents)
    if name == "normalize_decoder" or value is None:
        latents = latents * ae.decoder_norms() if value else latents
        return (x_hat, latents) if output_features else x_hat
    pre = ae.pre_activations(x)
    ghost = (pre.exp() * value.to(pre)) @ ae.W_dec.to(pre.dtype)
    return (x_hat, ghost, latents) if output_features else (x_hat, ghost)


def _top_k(ae: AutoEncoderTopK, x: Tensor) -> tuple[Tensor, ...]:
    flat, lead = pack([x], "* dim")  # (batch, activation_dim)
    kept = ae.kept(flat, ae.keeps)
    values, order = kept.values.sort(dim=-1, descending=True)
    sparse = (to_dense(kept), values, kept.indices.gather(-1, order))
    dense, values, indices = (unpack(tensor, lead, "* latents")[0] for tensor in sparse)
    return dense, values, indices, ae.pre_activations(x).relu()
