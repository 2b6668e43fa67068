"""Leave-one-out refinement: latents whose part of an activation others have taken are dropped."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries._calibration import tokens_of
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._wirings import Transcoder
from dictionary_learning.dictionaries._wrapper import Wrapper
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, gather_per_latent, nonzeros, replace_values, to_dense
from dictionary_learning.ops._pairs import pair_dots
from dictionary_learning.ops._precision import upcast

_AT_ONCE = 4096
"""Tokens whose latents are refined at once while a threshold is found."""
_SHARES = torch.linspace(0, 0.75, 61).tolist()
"""Shares of the latents to drop, of which the one with the least error is chosen."""


@DICTIONARIES.register("LeaveOneOut")
class LeaveOneOut(Wrapper):
    """A dictionary without the latents that add little to what the others reconstruct.

    f = latents inside,  r = x - x_hat,  s_i = <r, d_i> / |d_i| + f_i |d_i|
    f_i = 0 where s_i <= threshold

    s_i is the length along the direction d_i of what is left of x by all other latents, so it is
    in units of the activations. A latent that fires on what belongs to another has a low s_i even
    where f_i is large. For negative latents the sign of s_i is turned. Values that stay are those
    inside. `leave_one_out` finds the threshold on data.

    Bussmann 2026, leave-one-out refinement, in a comment on SynthSAEBench (LessWrong).

    Args:
        dictionary: The dictionary inside, or its options and `"class"`, the name of its class.
        threshold: What stays is above it; 0 drops what points the wrong way.

    Raises:
        ConfigError: The dictionary does not reconstruct what it reads with one decoder, or the
            threshold is not finite.
    """

    @checked()
    def __init__(self, dictionary: Dictionary | Mapping[str, Any], threshold: float):
        super().__init__(dictionary)
        self.dictionary = _checked(self.dictionary)
        if not math.isfinite(threshold):
            raise ConfigError(f"LeaveOneOut got threshold={threshold!r}; give a finite number.")
        self.threshold = float(threshold)
        self.info = self.dictionary.info

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        self.check_width(x)
        flat, lead = pack([x], "* dim")  # (batch, activation_dim)
        (dense,) = unpack(to_dense(self._refined(flat)), lead, "* dict_size")
        return dense

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        return self.dictionary.decode(latents, x)

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        latents = self._refined(x)
        return Reconstruction(self.dictionary.decode_latents(latents, x), latents)

    def decode_change(
        self, latents: Int[Tensor, "m"], change: Float[Tensor, "n m"], x: Float[Tensor, "n activation_dim"]
    ) -> Float[Tensor, "n output_dim"]:
        return self.dictionary.decode_change(latents, change, x)

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        self.dictionary.scale_(inputs, outputs)
        self.threshold *= inputs if outputs is None else outputs

    @property
    def site_widths(self) -> Any:
        return self.dictionary.site_widths

    def options(self) -> dict[str, Any]:
        return {**super().options(), "threshold": self.threshold}

    def _refined(self, x: Float[Tensor, "batch activation_dim"]) -> Latents:
        latents, left = left_by_others(self.dictionary, x)
        values = nonzeros(latents)
        return replace_values(latents, torch.where(left > self.threshold, values, torch.zeros_like(values)))


def left_by_others(coder: Coder, x: Float[Tensor, "batch activation_dim"]) -> tuple[Latents, Tensor]:
    """Returns the latents, and s_i of each (see `LeaveOneOut`) in the shape of their values."""
    made = coder.reconstruct(x)
    with torch.no_grad():  # what is chosen has no gradient
        latents, W_dec = made.latents, upcast(coder.W_dec)
        residual = upcast(x) - upcast(made.outputs)
        norms = W_dec.norm(dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)  # (dict_size,)
        norms = gather_per_latent(norms, latents)
        dense = isinstance(latents, Tensor)
        dots = residual @ W_dec.T if dense else pair_dots(residual, W_dec, latents.support)
        values = nonzeros(latents)
        return latents, (dots / norms + values * norms) * values.sign()


@checked()
@torch.no_grad()
def leave_one_out(
    dictionary: Dictionary,
    activations: Iterable[Float[Tensor, "_ activation_dim"]],
    n_tokens: int,
    *,
    target_l0: float | None = None,
) -> LeaveOneOut:
    """Returns the dictionary with the leave-one-out threshold that suits some activations.

    Latents and directions stay; fewer fire. The same weights are used, not copies.

    Args:
        dictionary: Any that reconstructs what it reads; it is not changed.
        activations: Batches (batch, activation_dim), scaled as the dictionary expects them.
        n_tokens: Tokens to find the threshold on, which are held in memory.
        target_l0: Latents to stay on average. By default those with the least squared error, which
            are fewer than without refinement where latents take each other's part.

    Raises:
        ConfigError: The dictionary does not reconstruct what it reads with one decoder, or fewer
            than target_l0 fire.
        DataError: The activations end before n_tokens.
    """
    coder = _checked(dictionary)
    parts = [
        part for batch in tokens_of(coder, activations, n_tokens, "leave_one_out") for part in batch.split(_AT_ONCE)
    ]
    scores: list[Tensor] = []
    for part in parts:
        latents, left = left_by_others(coder, part)
        scores.append(left[nonzeros(latents) != 0])
    ordered = torch.cat(scores).sort().values  # (pairs,)
    if target_l0 is not None:
        n_kept = round(target_l0 * n_tokens)
        if not 0 < n_kept <= len(ordered):
            raise ConfigError(
                f"Got target_l0={target_l0}; on these activations {len(ordered) / n_tokens:.4g} latents fire, and "
                "refinement only drops some. Give a positive number up to that."
            )
        return LeaveOneOut(coder, _below(ordered, len(ordered) - n_kept))
    thresholds = sorted({_below(ordered, int(share * len(ordered))) for share in _SHARES}) if len(ordered) else [0.0]
    tried = [LeaveOneOut(coder, threshold) for threshold in thresholds]
    return min(tried, key=lambda made: sum(float((made(part) - part).square().sum()) for part in parts))


def _below(ordered: Float[Tensor, "n"], at: int) -> float:
    """Returns a threshold that the values from a place on exceed, and those before do not."""
    high = float(ordered[at])
    low = float(ordered[at - 1]) if at else high - 1 - abs(high)
    middle = (low + high) / 2
    return middle if middle < high else low


def _checked(dictionary: Dictionary) -> Coder:
    reads = dictionary.info.target_sites in ((), dictionary.info.sites)
    if reads and isinstance(dictionary, Coder) and not isinstance(dictionary, Transcoder):
        return dictionary
    name = type(dictionary).__name__
    if isinstance(dictionary, Wrapper):
        instead = f"Give the {type(dictionary.dictionary).__name__} inside (its attribute `dictionary`)."
    else:
        instead = "Give an autoencoder or a crosscoder: what is left of an activation is known only of what is read."
    raise ConfigError(f"A {name} cannot be refined by leaving latents out. {instead}")
