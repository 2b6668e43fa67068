"""Dictionaries of activations that are normalized token by token, which no weights can express."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries._parallel_coders import CrossLayerTranscoder
from dictionary_learning.dictionaries._wirings import Transcoder
from dictionary_learning.dictionaries._wrapper import Wrapper
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._precision import upcast

_EPS = 1e-5
"""Added to the standard deviation of a token, as in the code of Gao et al. 2024."""


class Statistics(NamedTuple):
    """Statistics of tokens: inputs z = (x - mean) / scale, outputs y = z * restored + mean."""

    mean: Float[Tensor, "*batch #dim"]
    scale: Float[Tensor, "*batch #dim"]
    restored: Float[Tensor, "*batch #dim"]
    """Factor of outputs: `scale`, or another one that other packages use."""


PER_TOKEN: Registry[Callable[[Tensor], Statistics]] = Registry("normalization of each token")


@PER_TOKEN.register("layer_norm")
def layer_norm(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """Returns mean and standard deviation + 1e-5 of each token (code of Gao et al. 2024)."""
    mean, deviation = _moments(x)
    return Statistics(mean, deviation + _EPS, deviation + _EPS)


@PER_TOKEN.register("layer_norm_eps_in")
def layer_norm_eps_in(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """The same, with outputs multiplied by the deviation without 1e-5, as OpenAI and SAELens do."""
    mean, deviation = _moments(x)
    return Statistics(mean, deviation + _EPS, deviation)


@PER_TOKEN.register("constant_norm_rescale")
def constant_norm(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """Returns norm / sqrt(dim) of each token, and no mean: tokens get the norm sqrt(dim)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = (norm / math.sqrt(x.shape[-1])).clamp_min(torch.finfo(x.dtype).tiny)
    return Statistics(torch.zeros_like(norm), scale, scale)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    # the unbiased deviation (..., 1), 0 for sites of width 1
    return mean, torch.linalg.vector_norm(x - mean, dim=-1, keepdim=True) / math.sqrt(max(x.shape[-1] - 1, 1))


@DICTIONARIES.register("Normalized")
class Normalized(Wrapper):
    """A dictionary of normalized activations that reads and returns activations of the model.

    z = (x / scale - mean) / deviation,  x_hat = (z_hat * deviation + mean) * scale

    Latents and z_hat are those of the dictionary inside for z. Mean and deviation are computed for
    each token at each site, so `decode` needs the activations that the latents encode.

    Args:
        dictionary: The dictionary inside, or its options and `"class"`, the name of its class.
        normalization: Of each token, a name of `PER_TOKEN`; None for the scales only.
        site_dims: Width of each site that is read; by default one site.
        scales: Divisor of the activations of each site; by default 1.

    Raises:
        ConfigError: The outputs are other activations than the inputs, or the sites do not fit.
    """

    def __init__(
        self,
        dictionary: Dictionary | Mapping[str, Any],
        normalization: str | None,
        *,
        site_dims: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
    ):
        super().__init__(dictionary)
        check_reconstructs_inputs(self.dictionary)
        self.normalization = None if normalization is None else PER_TOKEN.canonical(normalization)
        self.site_dims = tuple(site_dims) if site_dims is not None else (self.activation_dim,)
        self.scales = tuple(map(float, scales)) if scales is not None else (1.0,) * len(self.site_dims)
        if sum(self.site_dims) != self.activation_dim or len(self.scales) != len(self.site_dims):
            raise ConfigError(
                f"Got sites of widths {self.site_dims} and scales {self.scales}; the {type(self.dictionary).__name__} "
                f"reads width {self.activation_dim}. Give widths with that sum, and one scale for each."
            )

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        x, token = self._measured(x)
        return self.dictionary.encode((x - token.mean) / token.scale)

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction from dense latents, with mean and deviation of x.

        Raises:
            ConfigError: Tokens are normalized one by one, and x was not given.
        """
        if x is None and self.normalization is not None:
            raise ConfigError(
                f"Tokens are normalized one by one ({self.normalization}), and latents do not hold their scale; give x "
                "too: decode(latents, x)."
            )
        y = self.dictionary.decode(latents)  # normalized
        _, token = self._measured(y if x is None else x)
        return y * token.restored + token.mean

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        return self._around(x, self.dictionary.reconstruct)

    def reconstruct_contexts(
        self, x: Float[Tensor, "n activation_dim"], lengths: Int[Tensor, "contexts"]
    ) -> Reconstruction:
        return self._around(x, lambda z: self.dictionary.reconstruct_contexts(z, lengths))

    def decode_change(
        self, latents: Int[Tensor, "m"], change: Float[Tensor, "n m"], x: Float[Tensor, "n activation_dim"]
    ) -> Float[Tensor, "n output_dim"]:
        x, token = self._measured(x)
        return self.dictionary.decode_change(latents, change, (x - token.mean) / token.scale) * token.restored

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        if outputs not in (None, inputs):
            raise ConfigError(f"A normalized dictionary has one scale; got inputs={inputs} and outputs={outputs}.")
        self.scales = tuple(scale * inputs for scale in self.scales)

    def options(self) -> dict[str, Any]:
        return {
            **super().options(),
            "normalization": self.normalization,
            "site_dims": list(self.site_dims),
            "scales": list(self.scales),
        }

    def _around(self, x: Tensor, reconstruct: Callable[[Tensor], Reconstruction]) -> Reconstruction:
        x, token = self._measured(x)
        made = reconstruct((x - token.mean) / token.scale)
        return made._replace(outputs=made.outputs * token.restored + token.mean)

    def _measured(self, x: Tensor) -> tuple[Tensor, Statistics]:
        """Returns the activations in float32 at least, and the statistics of their tokens."""
        self.check_width(x)
        x = upcast(x)
        sites = zip(x.split(self.site_dims, -1), self.scales, strict=True)
        found = [self._of_site(site, scale) for site, scale in sites]
        if len(found) == 1:
            return x, found[0]  # (..., 1), broadcast over the dimensions
        joined: list[Tensor] = []
        for parts in zip(*found, strict=True):  # the same statistic of each site: (..., 1) -> (..., activation_dim)
            wide = [part.expand(*x.shape[:-1], dim) for part, dim in zip(parts, self.site_dims, strict=True)]
            joined.append(torch.cat(wide, dim=-1))
        return x, Statistics(*joined)

    def _of_site(self, x: Tensor, scale: float) -> Statistics:
        if self.normalization is None:
            return Statistics(x.new_zeros(1), x.new_full((1,), scale), x.new_full((1,), scale))
        # of x / scale, times scale: so that they apply to x itself
        token = PER_TOKEN[self.normalization](x / scale)
        return Statistics(*(part * scale for part in token))


def check_reconstructs_inputs(dictionary: Dictionary) -> None:
    """Raises ConfigError if a dictionary predicts other activations than its inputs."""
    if isinstance(dictionary, (Transcoder, CrossLayerTranscoder)) or dictionary.output_dim != dictionary.activation_dim:
        raise ConfigError(
            f"A {type(dictionary).__name__} predicts other activations than it reads, whose mean and scale at a token "
            "are not known in use, so tokens cannot be normalized one by one. Choose one normalization for all tokens, "
            "such as unit_mean_square."
        )
