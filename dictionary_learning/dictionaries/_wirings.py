"""Wirings: which sites a dictionary reads and writes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries._base import DICTIONARIES
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._parallel_coders import CrossLayerTranscoder, HeadAutoencoders, ParallelCoders
from dictionary_learning.dictionaries._trainable import Trainable
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError


@DICTIONARIES.register("SparseAutoencoder")
class SparseAutoencoder(Coder):
    """Reconstructs its inputs.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)
    x_hat = W_dec^T latents + b_dec
    """

    option_names: ClassVar[tuple[str, ...]] = ("apply_b_dec_to_input", "rank_by_norm")

    def scale_biases(self, scale: float) -> None:
        """Scales the dictionary, as `scale_(scale)`; the name in dictionary-learning."""
        self.scale_(scale)


@DICTIONARIES.register("SkipAutoencoder")
class SkipAutoencoder(Coder):
    """Reconstructs activations from latents and from the activations themselves.

    x_hat = W_dec^T latents + b_dec + W_skip x

    W_skip reads x before b_dec is subtracted. EleutherAI's sparsify has this wiring, and had its
    early transcoders too: the target may also be another site of the same width.
    """

    option_names: ClassVar[tuple[str, ...]] = ("rank_by_norm",)
    has_skip: ClassVar[bool] = True


@DICTIONARIES.register("Transcoder")
class Transcoder(Coder):
    """Predicts the output of a module from its input.

    latents = nonlinearity(W_enc x + b_enc)
    y_hat = W_dec^T latents + b_dec [+ W_skip x]

    Dunefsky et al. 2024, https://arxiv.org/abs/2406.11944; with the affine skip connection Paulo et
    al. 2025, https://arxiv.org/abs/2501.18823.
    """

    option_names: ClassVar[tuple[str, ...]] = ("output_dim", "skip", "rank_by_norm")
    subtracts_b_dec: ClassVar[bool] = False


@DICTIONARIES.register("Crosscoder")
class Crosscoder(Coder):
    """Reconstructs the activations of several layers or models from one set of latents.

    latents = nonlinearity(sum over sites m of W_enc^m x^m + b_enc)
    x_hat^m = W_dec^m^T latents + b_dec^m

    Sites are concatenated: x is (batch, sum of widths), and so are the rows of W_enc and W_dec. A
    latent's norm is the sum of its norms over sites. Latents are ranked by value times norm, so
    that none is preferred for a small decoder.
    Lindsey et al. 2024, "Sparse Crosscoders"; ranking: Minder et al. 2025,
    https://arxiv.org/abs/2504.02922.
    """

    option_names: ClassVar[tuple[str, ...]] = ("rank_by_norm",)
    subtracts_b_dec: ClassVar[bool] = False
    ranks_by_norm: ClassVar[bool] = True

    @checked(is_module=True)
    def __init__(
        self, site_dims: Sequence[int], dict_size: int, nonlinearity: Nonlinearity | dict[str, Any], **options: Any
    ):
        if not site_dims:
            raise ConfigError(f"Got site_dims={site_dims!r}; give the width of each site.")
        super().__init__(sum(site_dims), dict_size, nonlinearity, site_dims=site_dims, **options)

    @property
    def site_widths(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.site_dims, self.site_dims

    @property
    def site_decoders(self) -> tuple[Float[Tensor, "dict_size dim"], ...]:
        """W_dec of each site; views."""
        return self.W_dec.split(self.site_dims, dim=1)

    def relative_norms(self, first: int = 0, second: int = 1) -> Float[Tensor, "dict_size"]:
        """Returns where between two sites each latent writes: 0 to the first only, 1 to the second.

        (1 + (|d^second| - |d^first|) / max(|d^second|, |d^first|)) / 2;  Lindsey et al. 2024.
        """
        norms = [self.site_decoders[m].float().norm(dim=1) for m in (first, second)]
        largest = torch.maximum(*norms).clamp_min(torch.finfo(torch.float32).tiny)
        return (1 + (norms[1] - norms[0]) / largest) / 2

    def options(self) -> dict[str, Any]:
        options = super().options()
        options.pop("activation_dim")
        return {"site_dims": list(self.site_dims), **options}


@dataclasses.dataclass(frozen=True)
class DictionaryShape:
    """The sizes that a dictionary is built for."""

    inputs: tuple[int, ...]
    """Width of each site that is read."""
    outputs: tuple[int, ...]
    """Width of each site that is written."""
    dict_size: int
    n_heads: int | None = None
    """Attention heads in the site, where each has latents of its own."""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How a dictionary is connected to sites."""

    makes: type[Any]
    """The class of the dictionary."""
    arguments: Callable[[DictionaryShape], dict[str, Any]]
    """The arguments of the class, apart from dict_size, nonlinearity and generator."""
    reads_several: bool = False
    """Whether several sites are read at once."""
    writes_others: bool = False
    """Whether outputs are other activations than inputs."""
    unit_rows: bool = False
    """Whether decoder rows have unit norm by default: where outputs have the inputs' scale."""

    @property
    def has_parallel_coders(self) -> bool:
        """Whether there are several coders side by side."""
        return issubclass(self.makes, ParallelCoders)

    def build(
        self, shape: DictionaryShape, nonlinearity: Nonlinearity, generator: torch.Generator | None, **options: Any
    ) -> Trainable:
        """Returns a new dictionary of this wiring; `options` are further arguments of its class."""
        options = {**self.arguments(shape), **options}
        return self.makes(dict_size=shape.dict_size, nonlinearity=nonlinearity, generator=generator, **options)


def _two_widths(shape: DictionaryShape) -> dict[str, Any]:
    return {"activation_dim": sum(shape.inputs), "output_dim": sum(shape.outputs)}


WIRINGS: Registry[Wiring] = Registry("wiring")
for _name, _wiring in {
    "autoencoder": Wiring(SparseAutoencoder, lambda shape: {"activation_dim": sum(shape.inputs)}, unit_rows=True),
    "transcoder": Wiring(Transcoder, _two_widths, writes_others=True),
    "skip_transcoder": Wiring(Transcoder, lambda shape: {**_two_widths(shape), "skip": True}, writes_others=True),
    "crosscoder": Wiring(Crosscoder, lambda shape: {"site_dims": shape.inputs}, reads_several=True),
    "cross_layer_transcoder": Wiring(
        CrossLayerTranscoder,
        lambda shape: {"site_dims": shape.inputs, "output_dims": shape.outputs},
        reads_several=True,
        writes_others=True,
    ),
    "heads": Wiring(
        HeadAutoencoders,
        lambda shape: {"activation_dim": sum(shape.inputs), "n_heads": shape.n_heads or len(shape.inputs)},
        unit_rows=True,
    ),
}.items():
    WIRINGS.register(_name)(_wiring)


def wiring_of(dictionary: Trainable) -> str:
    """Returns the name of a dictionary's wiring."""
    if isinstance(dictionary, Transcoder):
        return "transcoder" if dictionary.W_skip is None else "skip_transcoder"
    others = (name for name, wiring in WIRINGS.items() if isinstance(dictionary, wiring.makes))
    return next(others, "autoencoder")


def have_same_parts(one: str, other: str) -> bool:
    """Returns whether dictionaries of two wirings have the same parts, such as one coder."""
    return one == other or {WIRINGS[one].makes, WIRINGS[other].makes} <= {SparseAutoencoder, Transcoder}
