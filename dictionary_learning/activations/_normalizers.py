"""Normalization of a site's activations before a dictionary learns from them."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries._normalized import PER_TOKEN
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.ops._precision import upcast
from dictionary_learning.sites import Site

N = TypeVar("N", bound="Normalizer")


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer(ABC):
    """Normalizes the activations of one site."""

    is_folded: ClassVar[bool]
    """Whether the normalization can be folded into a dictionary's weights."""

    dim: int
    """Width of the site."""

    @classmethod
    @abstractmethod
    def fit(cls: type[N], sample: Float[Tensor, "n dim"]) -> N:
        """Returns the normalizer for activations with the statistics of a sample's finite rows."""

    @abstractmethod
    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Returns normalized activations."""

    @abstractmethod
    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Returns y, such as a reconstruction, in the model's units; x are its tokens."""

    def describe(self) -> dict[str, Any]:
        """Returns the normalization as plain data, to be saved with a dictionary."""
        return {"name": NORMALIZATIONS.name_of(type(self)), "dim": self.dim, "folded": self.is_folded}


class _Normalizations(Registry[type[Normalizer]]):
    """The normalizations by name; says why a removed one is missing."""

    def __getitem__(self, name: str) -> type[Normalizer]:
        if name in ("whitening", "covariance_whitening"):
            raise ConfigError(
                f"Got normalize={name!r}; whitening is not supported any more, since it mixes the dimensions of a site "
                "and few dictionaries can absorb it. Choose 'unit_mean_square', or whiten the activations yourself."
            )
        return super().__getitem__(name)


NORMALIZATIONS = _Normalizations("normalization")


@dataclasses.dataclass(frozen=True)
class Scalar(Normalizer):
    """Divides all activations of a site by one number."""

    is_folded = True

    scale: float = 1.0

    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x if self.scale == 1 else x / self.scale

    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return y * self.scale

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "scale": self.scale}


@NORMALIZATIONS.register("none")
class Unchanged(Scalar):
    """Leaves activations as they are."""

    @classmethod
    def fit(cls, sample: Float[Tensor, "n dim"]) -> "Unchanged":
        return cls(sample.shape[1])


@NORMALIZATIONS.register("unit_mean_square")
class UnitMeanSquare(Scalar):
    """x / sqrt(E|x|^2): the mean squared norm is 1."""

    @classmethod
    def fit(cls, sample: Float[Tensor, "n dim"]) -> "UnitMeanSquare":
        return cls(sample.shape[1], _root_mean_square_norm(sample))


@NORMALIZATIONS.register("sqrt_dim", "expected_average_only_in")
class SqrtDim(Scalar):
    """x sqrt(dim) / E|x|: the mean norm is sqrt(dim). Anthropic, Circuits Updates of April 2024."""

    @classmethod
    def fit(cls, sample: Float[Tensor, "n dim"]) -> "SqrtDim":
        _root_mean_square_norm(sample)  # refuses samples without a scale
        finite = _squared_norms(sample).isfinite()  # (n,)
        rows = sample if bool(finite.all()) else sample[finite]
        norms = upcast(rows).norm(dim=-1)
        return cls(sample.shape[1], float(float64(norms).mean()) / math.sqrt(sample.shape[1]))


class PerToken(Normalizer, ABC):
    """Normalizes each token by its own statistics, which no weights can do."""

    is_folded = False

    @classmethod
    def fit(cls: type[N], sample: Float[Tensor, "n dim"]) -> N:
        dim = sample.shape[1]
        if dim < 2:
            raise DataError(
                f"Got tokens of width {dim}; {NORMALIZATIONS.name_of(cls)} needs at least 2, or only a sign is left. "
                "Check the site, or choose unit_mean_square."
            )
        _root_mean_square_norm(sample)  # refuses samples without a scale
        return cls(dim)

    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        token = PER_TOKEN[NORMALIZATIONS.name_of(type(self))](upcast(x))
        return (upcast(x) - token.mean) / token.scale

    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        token = PER_TOKEN[NORMALIZATIONS.name_of(type(self))](upcast(x))
        return y * token.scale + token.mean


@NORMALIZATIONS.register("layer_norm")
class LayerNorm(PerToken):
    """(x - mean) / (standard deviation + 1e-5) over the dimensions of each token.

    As in the code of Gao et al. 2024, https://arxiv.org/abs/2406.04093.
    """


@NORMALIZATIONS.register("constant_norm_rescale")
class ConstantNormRescale(PerToken):
    """x sqrt(dim) / |x|: every token has the norm sqrt(dim)."""


def saved_normalizers(of_each: Iterable[Mapping[Site, Normalizer]]) -> list[dict[str, Any]]:
    """Returns fitted normalizers as plain data, for `restored_normalizers`."""
    found = {(site, id(n)): (site, n) for normalizers in of_each for site, n in normalizers.items()}
    return [
        {"site": str(site), "kind": NORMALIZATIONS.name_of(type(n)), "fields": dataclasses.asdict(n)}
        for site, n in found.values()
    ]


def restored_normalizers(saved: Iterable[Mapping[str, Any]]) -> dict[tuple[Site, str], Normalizer]:
    """Returns the normalizers by site and name."""
    return {
        (Site.parse(entry["site"]), entry["kind"]): NORMALIZATIONS[entry["kind"]](**entry["fields"]) for entry in saved
    }


def _squared_norms(x: Tensor) -> Tensor:
    return x.float().pow(2).sum(-1)  # (n,)


def _root_mean_square_norm(x: Tensor) -> float:
    """Returns sqrt(E|x|^2) over finite rows: x divided by it has a mean squared norm of 1."""
    squares = _squared_norms(x)
    scale = float(float64(squares[squares.isfinite()]).mean().sqrt())
    if not 0 < scale < math.inf:
        raise DataError(
            f"The {len(squares)} activations have a root mean squared norm of {scale} where it is finite; they cannot "
            "be normalized. Check the site and the model's dtype."
        )
    return scale
