"""Dictionaries of activations that are normalized token by token, which no weights can do."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries.parallel_coders import CrossLayerTranscoder
from dictionary_learning.dictionaries.wirings import Transcoder
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.precision import upcast

_EPS = 1e-5
"""What is added to a token's standard deviation, as in the code of Gao et al. 2024."""


class Statistics(NamedTuple):
    """What a token is normalized with: z = (x - mean) / scale, and y = z * restored + mean."""

    mean: Float[Tensor, "*batch #dim"]
    scale: Float[Tensor, "*batch #dim"]
    restored: Float[Tensor, "*batch #dim"]
    """What outputs are multiplied by: `scale`, but for what other packages do."""


PER_TOKEN: Registry[Callable[[Tensor], Statistics]] = Registry("normalization of each token")


@PER_TOKEN.register("layer_norm")
def layer_norm(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """Returns each token's mean over its dimensions, and their standard deviation + 1e-5: as in the code of Gao et al. 2024."""
    mean, deviation = _moments(x)
    return Statistics(mean, deviation + _EPS, deviation + _EPS)


@PER_TOKEN.register("layer_norm_eps_in")
def layer_norm_eps_in(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """The same, but outputs are multiplied by the deviation without the 1e-5: what OpenAI's and SAELens's dictionaries do."""
    mean, deviation = _moments(x)
    return Statistics(mean, deviation + _EPS, deviation)


@PER_TOKEN.register("constant_norm_rescale")
def constant_norm(x: Float[Tensor, "*batch dim"]) -> Statistics:
    """Returns each token's norm / sqrt(dim), without a mean: every token gets the norm sqrt(dim), but for those of zeros."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = (norm / math.sqrt(x.shape[-1])).clamp_min(torch.finfo(x.dtype).tiny)
    return Statistics(torch.zeros_like(norm), scale, scale)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return mean, torch.linalg.vector_norm(x - mean, dim=-1, keepdim=True) / math.sqrt(max(x.shape[-1] - 1, 1))


@DICTIONARIES.register("Normalized")
class Normalized(Dictionary):
    """A dictionary of normalized activations, which takes and returns activations as the model gives them.

    z = (x / scale - mean) / deviation,  latents = dictionary.encode(z),  x_hat = (z_hat * deviation + mean) * scale

    Mean and deviation are the token's own, at each site; so `decode` needs the activations that latents are of. Latents are those
    of the dictionary inside.

    Args:
        dictionary: the dictionary inside, or its class and options as `{"class": "AutoEncoder", ...}`.
        normalization: what is done to each token: a name of `PER_TOKEN`. None leaves it at the scales.
        site_dims: the width of each site that it reads; by default one site.
        scales: what the activations of each site are divided by; by default 1.

    Raises:
        ConfigError: the dictionary predicts other activations than it reads, or the sites do not fit it.
    """

    def __init__(
        self,
        dictionary: Dictionary | Mapping[str, Any],
        normalization: str | None,
        *,
        site_dims: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
    ):
        if isinstance(dictionary, Mapping):
            options = dict(dictionary)
            dictionary = DICTIONARIES[options.pop("class", "")](**options)
        super().__init__(dictionary.activation_dim, dictionary.dict_size, dictionary.output_dim)
        check_reconstructs_inputs(dictionary)
        self.dictionary = dictionary
        self.normalization = None if normalization is None else PER_TOKEN.canonical(normalization)
        self.site_dims = tuple(site_dims) if site_dims is not None else (dictionary.activation_dim,)
        self.scales = tuple(map(float, scales)) if scales is not None else (1.0,) * len(self.site_dims)
        if sum(self.site_dims) != self.activation_dim or len(self.scales) != len(self.site_dims):
            raise ConfigError(
                f"Got sites of widths {self.site_dims} and scales {self.scales}; the {type(dictionary).__name__} reads width "
                f"{self.activation_dim}. Give widths with that sum, and one scale for each."
            )

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        x, token = self._measured(x)
        return self.dictionary.encode((x - token.mean) / token.scale)

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the activations that dense latents stand for.

        Args:
            latents: the latents.
            x: the activations that they are of, whose mean and deviation the output gets back.

        Raises:
            ConfigError: x is needed and was not given.
        """
        if x is None and self.normalization is not None:
            raise ConfigError(
                f"Each token was normalized by itself ({self.normalization}), and latents do not hold its scale; "
                "give x too: decode(latents, x)."
            )
        y = self.dictionary.decode(latents)
        _, token = self._measured(y if x is None else x)
        return y * token.restored + token.mean

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        return self._around(x, self.dictionary.reconstruct)

    def reconstruct_contexts(
        self, x: Float[Tensor, "n activation_dim"], lengths: Int[Tensor, "contexts"]
    ) -> Reconstruction:
        return self._around(x, lambda z: self.dictionary.reconstruct_contexts(z, lengths))

    @property
    def reads_contexts(self) -> bool:
        return self.dictionary.reads_contexts

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        if not output_features:
            return super().forward(x)
        latents = self.encode(x)
        return self.decode(latents, x), latents

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        if outputs not in (None, inputs):
            raise ConfigError(
                f"It reconstructs what it reads, in one scale; got inputs={inputs} and outputs={outputs}."
            )
        self.scales = tuple(scale * inputs for scale in self.scales)

    def options(self) -> dict[str, Any]:
        return {
            "dictionary": {"class": DICTIONARIES.name_of(type(self.dictionary)), **self.dictionary.options()},
            "normalization": self.normalization,
            "site_dims": list(self.site_dims),
            "scales": list(self.scales),
        }

    def _around(self, x: Tensor, reconstruct: Callable[[Tensor], Reconstruction]) -> Reconstruction:
        x, token = self._measured(x)
        made = reconstruct((x - token.mean) / token.scale)
        return made._replace(outputs=made.outputs * token.restored + token.mean)

    def _measured(self, x: Tensor) -> tuple[Tensor, Statistics]:
        """Returns the activations in float32 at least, and what they are normalized with."""
        if x.shape[-1] != self.activation_dim:
            raise ConfigError(
                f"Got activations of width {x.shape[-1]}; this dictionary takes width {self.activation_dim}. "
                "Check that they come from the site that it was trained on."
            )
        x = upcast(x)
        found = [
            self._of_site(site, scale) for site, scale in zip(x.split(self.site_dims, -1), self.scales, strict=True)
        ]
        if len(found) == 1:
            return x, found[0]
        joined = (
            torch.cat(
                [part.expand(*x.shape[:-1], dim) for part, dim in zip(parts, self.site_dims, strict=True)], dim=-1
            )
            for parts in zip(*found, strict=True)
        )
        return x, Statistics(*joined)

    def _of_site(self, x: Tensor, scale: float) -> Statistics:
        if self.normalization is None:
            return Statistics(x.new_zeros(1), x.new_full((1,), scale), x.new_full((1,), scale))
        token = PER_TOKEN[self.normalization](x / scale)
        return Statistics(*(part * scale for part in token))


def check_reconstructs_inputs(dictionary: Dictionary) -> None:
    """Checks that what a dictionary returns are the activations that it reads.

    Raises:
        ConfigError: it predicts others, of which the token's mean and scale are not known.
    """
    if isinstance(dictionary, (Transcoder, CrossLayerTranscoder)) or dictionary.output_dim != dictionary.activation_dim:
        raise ConfigError(
            f"A {type(dictionary).__name__} predicts other activations than it reads; their mean and scale at a token are not known "
            "when it is used, so tokens cannot be normalized each by itself. Choose a normalization of all tokens alike, as "
            "unit_mean_square."
        )
