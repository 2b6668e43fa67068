"""Changes to activations. `keep` is a mask of the tokens that change, by default all."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError, SiteError
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

TokenMask: TypeAlias = Bool[Tensor, "..."] | Int[Tensor, "..."]
"""Tokens (batch, ctx), True or 1 for those that count; (1, ctx) or (ctx,) if rows are alike."""


@checked()
def graft(dictionary: Dictionary, keep: TokenMask | None = None) -> Edit:
    """Replaces the activations with the dictionary's reconstruction, computed in its own dtype.

    Raises:
        ConfigError: The dictionary reconstructs other activations than it reads.
    """
    check_keep(keep)
    check_reads_what_it_writes(dictionary, "graft_across(dictionary, read, write)")

    def edit(x: Tensor) -> Tensor:
        return _with_reconstructions(dictionary, x, x, keep)

    return edit


@checked()
def graft_across(dictionary: Dictionary, read: Site, write: Site, keep: TokenMask | None = None) -> dict[Site, Edit]:
    """Replaces the activations at a site with a transcoder's prediction from an earlier one.

    Args:
        dictionary: the transcoder.
        read: the site that it reads.
        write: the site that it predicts, which the model reaches later.
        keep: the tokens whose activations change.

    Returns:
        The edits of one forward pass.

    Raises:
        ConfigError: Both sites are the same; or, in the pass, the model reaches `write` first.
    """
    check_keep(keep)
    check_apart(read, write, "graft")
    seen: list[Tensor] = []

    def remember(x: Float[Tensor, "batch ctx dim"]) -> None:
        seen[:] = [x]

    def replace(y: Float[Tensor, "batch ctx dim"]) -> Tensor:
        if not seen:
            raise ConfigError(f"The model has not reached '{read}' when it is at '{write}'; write a later site.")
        return _with_reconstructions(dictionary, seen[0], y, keep)

    return {read: remember, write: replace}


@checked()
def put(value: Float[Tensor, "batch ctx dim"], keep: TokenMask | None = None) -> Edit:
    """Replaces the activations with given values, which are finite where they are kept."""
    check_keep(keep)
    largest = _check_finite("value", value if keep is None else value[token_mask(keep, value)])

    def edit(x: Tensor) -> Tensor:
        _check_fits("value", largest, x)
        return _where(keep, value.to(x.device, x.dtype), x)

    return edit


def putting(value: Tensor, keep: Tensor | None = None) -> Edit:
    """Is `put` of values that a model or a dictionary computed, which may be anything."""

    def edit(x: Tensor) -> Tensor:
        return _where(keep, value.to(x.device, x.dtype), x)

    return edit


@checked()
def ablate(value: Float[Tensor, "dim"] | float = 0.0, keep: TokenMask | None = None) -> Edit:
    """Replaces the activations of each token with one value: zero, or the mean over a data set."""
    check_keep(keep)
    largest = _check_finite("value", value)

    def edit(x: Tensor) -> Tensor:
        _check_fits("value", largest, x)
        return _where(keep, _like(value, x), x)

    return edit


@checked()
def steer(
    direction: Float[Tensor, "dim"],
    scale: float,
    keep: TokenMask | None = None,
    *,
    unit: Literal["raw", "norm", "max_activation"] = "raw",
    max_activation: float | None = None,
) -> Edit:
    """Adds a multiple of a direction, as a row of W_dec, to the activations of each token.

    Args:
        direction: the direction, which is not normalized.
        scale: the strength. It has no default: what is right for one direction is not for others.
        keep: the tokens whose activations change.
        unit: of the strength. "raw": x + scale * direction. "norm": a share of the token's norm, x
            + scale * |x| * direction / |direction|. "max_activation": x + scale * max_activation *
            direction, as in AxBench.
        max_activation: the largest activation of the latent on text.

    Raises:
        ConfigError: the unit is unknown, or max_activation is missing or has no effect; or the
            direction is no vector of finite real numbers, or of no length where unit is "norm".
    """
    check_keep(keep)
    if (unit == "max_activation") != (max_activation is not None):
        raise ConfigError(f"Got unit={unit!r} and max_activation={max_activation}; give both or neither.")
    largest = _check_finite("direction", direction)
    if direction.ndim != 1 or not direction.numel() or (unit == "norm" and not direction.any()):
        needed = "a vector (dim,) is needed, and with unit='norm' one that is not 0"
        raise ConfigError(f"Got direction={_shown(direction)}; {needed}. Give a row of W_dec.")
    strength = scale * (1.0 if max_activation is None else max_activation)

    def edit(x: Tensor) -> Tensor:
        _check_fits("direction", max(largest, abs(strength) * (1.0 if unit == "norm" else largest)), x)
        d = _like(direction, x)
        if unit == "norm":
            d = x.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(d, dim=-1)
        return _where(keep, x + strength * d, x)

    return edit


def check_keep(keep: Tensor | None) -> None:
    """Raises ConfigError if a mask holds fractions, or other numbers than 0 and 1."""
    if keep is None or keep.dtype == torch.bool:
        return
    if keep.is_floating_point() or keep.is_complex() or not ((keep == 0) | (keep == 1)).all():
        raise ConfigError(f"Got keep={_shown(keep)}; give a tensor (batch, ctx) of booleans, or of 1 and 0.")


def check_reads_what_it_writes(dictionary: Dictionary, instead: str) -> None:
    """Raises ConfigError if a dictionary is known to reconstruct another site than it reads."""
    info = dictionary.info
    reads, writes = (list(map(_parsed, names)) for names in (info.sites, info.target_sites))
    is_apart = bool(reads and writes) and set(reads) != set(writes)
    if is_apart or dictionary.output_dim != dictionary.activation_dim:
        what = f"reads '{reads[0]}' and writes '{writes[0]}'" if is_apart else "writes another site"
        raise ConfigError(f"This {type(dictionary).__name__} {what}, and one edit changes one site. Use {instead}.")


def _parsed(name: str) -> Site | str:
    """Returns the site of a name; other packages' files may have names of another form."""
    try:
        return Site.parse(name)
    except SiteError:
        return name


def check_apart(read: Site, write: Site, within: str) -> None:
    """Raises ConfigError if a site is read and written, which `within` is for."""
    if read == write:
        raise ConfigError(f"Got '{read}' as read and as write; give a later site to write, or use {within}.")


def _check_finite(name: str, value: Tensor | float) -> float:
    """Returns the largest of finite real numbers, or raises ConfigError."""
    if not isinstance(value, Tensor):
        return abs(value)
    if value.is_complex() or value.dtype == torch.bool or not value.isfinite().all():
        raise ConfigError(f"Got {name}={_shown(value)}; give finite real numbers.")
    return float(value.detach().abs().max()) if value.numel() else 0.0


def _check_fits(name: str, largest: float, x: Tensor) -> None:
    """Raises DataError if a number is not finite in the dtype of the activations."""
    if x.is_floating_point() and not largest <= torch.finfo(x.dtype).max:
        raise DataError(f"The {name} reaches {largest:.3g}, which {x.dtype} does not hold; give a smaller one.")


def _shown(value: Tensor) -> str:
    """Returns a tensor as an error shows it."""
    if value.is_complex() or value.dtype == torch.bool or not value.numel():
        return f"{short(value)} ({value.dtype})"
    return f"{short(value)} ({value.dtype}) from {float(value.min()):.3g} to {float(value.max()):.3g}"


def _where(keep: Tensor | None, new: Tensor, x: Tensor) -> Tensor:
    return new if keep is None else torch.where(token_mask(keep, x).unsqueeze(-1), new, x)


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    """Returns values in the shape of the activations: one number, (dim,), or as many."""
    given = torch.as_tensor(value, device=x.device).to(x.dtype)
    if given.ndim and given.shape[-1] == x.shape[-1] and set(given.shape[:-1]) <= {1}:
        given = given.reshape(-1)
    if given.shape not in ((), x.shape[-1:], x.shape):  # others would be broadcast along something else
        message = f"Got values of shape {tuple(given.shape)} for activations {tuple(x.shape)}; give"
        raise DataError(f"{message} one for each of the {x.shape[-1]} dimensions, or one for each activation.")
    return given.expand_as(x)


def token_mask(keep: Tensor, x: Tensor) -> Bool[Tensor, "batch ctx"]:
    """Returns the mask of tokens for activations (batch, ctx, dim); one row is for every row."""
    if keep.is_floating_point():
        raise DataError(f"Got keep={keep!r}; give a tensor (batch, ctx) of booleans, or of 1 and 0.")
    try:
        return keep.to(x.device).bool().expand(x.shape[:-1])
    except RuntimeError as error:
        raise DataError(
            f"The mask of tokens has shape {tuple(keep.shape)}, and the activations are {tuple(x.shape)}; (batch, ctx) "
            "is needed. While a model generates, it reads its prompt first and then one token at a time: make the edit "
            "with a mask for each step, or without one."
        ) from error


def _with_reconstructions(dictionary: Dictionary, x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    """Returns y with the dictionary's outputs for x at the tokens of the mask."""
    inside = x.to(dictionary.device, dictionary.dtype)
    if keep is None:
        return dictionary(inside).to(y.device, y.dtype)
    mask = token_mask(keep, inside)
    # the dictionary sees no other tokens, which may be padding
    outputs = dictionary.reconstruct_contexts(inside[mask], mask.sum(-1)).outputs  # (n, output_dim)
    return y.masked_scatter(mask.to(y.device).unsqueeze(-1), outputs.to(y.device, y.dtype))
