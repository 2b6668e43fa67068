"""What is done to the activations of a site before a dictionary learns from them."""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.activations.stream import root_mean_square_norm
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries.normalized import PER_TOKEN
from dictionary_learning.errors import DataError
from dictionary_learning.hardware import float64
from dictionary_learning.ops.precision import no_autocast, upcast

N = TypeVar("N", bound="Normalizer")

_EPS = 1e-3
"""Added to variances before whitening, in units of their mean: directions with less are noise, and stay small."""
_ROWS_PER_DIM = 4
"""With fewer rows the smallest variances come out at less than (1 - 1/2)^2 of what they are (Marchenko and Pastur 1967)."""
_CONSTANT = 1e-12
"""Variance in units of the squared mean below which activations count as constant."""
_CHUNK = 8192
"""Rows held in double precision at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer(ABC):
    """What is done to the activations of one site."""

    is_folded: ClassVar[bool]
    """Whether weights can do it, so that a finished dictionary has it in its own."""

    dim: int
    """The width of the site."""

    @classmethod
    @abstractmethod
    def fit(cls: type[N], sample: Float[Tensor, "n dim"]) -> N:
        """Returns the normalizer for activations like those of a sample.

        Raises:
            DataError: the activations are all zero, not all finite, or too few.
        """

    @abstractmethod
    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Returns normalized activations."""

    @abstractmethod
    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Returns normalized activations as they would be in the model.

        Args:
            y: the normalized activations, as a reconstruction.
            x: the model's own activations of the same tokens.
        """

    def describe(self) -> dict[str, Any]:
        """Returns what it is, as plain data to be saved beside a dictionary."""
        return {"name": NORMALIZATIONS.name_of(type(self)), "dim": self.dim, "folded": self.is_folded}


NORMALIZATIONS: Registry[type[Normalizer]] = Registry("normalization")


class Affine(Normalizer, ABC):
    """z = (x - offset) P with a symmetric P, the same for all tokens."""

    is_folded = True

    @abstractmethod
    def times(self, W: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Returns W P."""

    @abstractmethod
    def times_inverse(self, W: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Returns W P^-1."""

    @property
    def factor(self) -> float | None:
        """What x is divided by, where that is all."""
        return None

    @property
    def offset(self) -> Float[Tensor, "dim"] | None:
        """What is subtracted from x, if anything."""
        return None


@dataclasses.dataclass(frozen=True)
class Scalar(Affine):
    """Divides by a number."""

    scale: float = 1.0

    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x if self.scale == 1 else x / self.scale

    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return y * self.scale

    def times(self, W: Float[Tensor, "rows some_of_dim"]) -> Float[Tensor, "rows some_of_dim"]:
        return upcast(W) / self.scale

    def times_inverse(self, W: Float[Tensor, "rows some_of_dim"]) -> Float[Tensor, "rows some_of_dim"]:
        return upcast(W) * self.scale

    @property
    def factor(self) -> float | None:
        return self.scale

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
        return cls(sample.shape[1], root_mean_square_norm(sample))


@NORMALIZATIONS.register("sqrt_dim", "expected_average_only_in")
class SqrtDim(Scalar):
    """x sqrt(dim) / E|x|: the mean norm is sqrt(dim) (Anthropic, April 2024 update)."""

    @classmethod
    def fit(cls, sample: Float[Tensor, "n dim"]) -> "SqrtDim":
        root_mean_square_norm(sample)  # refuses what has no scale
        return cls(sample.shape[1], float(float64(upcast(sample).norm(dim=-1)).mean()) / math.sqrt(sample.shape[1]))


@NORMALIZATIONS.register("whitening", "covariance_whitening")
@dataclasses.dataclass(frozen=True, eq=False)
class Whitening(Affine):
    """z = (x - mean) E diag(lambda + eps)^(-1/2) E^T, of the covariance E diag(lambda) E^T; eps is 1e-3 of the mean lambda.

    Of all whitenings this one (ZCA) changes activations least, so that directions keep their meaning.
    """

    mean: Float[Tensor, "dim"]
    matrix: Float[Tensor, "dim dim"]
    inverse: Float[Tensor, "dim dim"]

    @classmethod
    def fit(cls, sample: Float[Tensor, "n dim"]) -> "Whitening":
        n, dim = sample.shape
        if n < _ROWS_PER_DIM * dim:
            raise DataError(
                f"Got {n} activations of width {dim}; whitening needs at least {_ROWS_PER_DIM * dim} of them ({_ROWS_PER_DIM} times the "
                "width), or small variances are underestimated. Give more data, or choose unit_mean_square."
            )
        root_mean_square_norm(sample)
        mean, covariance = _moments(sample)
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0)
        if not float(variances.mean()) > _CONSTANT * float(mean.pow(2).mean()):
            raise DataError("The activations are all the same; they cannot be whitened. Check the site and the data.")
        deviations = (variances + _EPS * variances.mean()).sqrt()
        found = (mean, (directions / deviations) @ directions.T, (directions * deviations) @ directions.T)
        return cls(dim, *(each.to(sample.device, upcast(sample[:0]).dtype) for each in found))

    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return _product(upcast(x) - self.mean.to(upcast(x)), self.matrix)

    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return _product(y, self.inverse) + self.mean.to(upcast(y))

    def times(self, W: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        return _product(W, self.matrix)

    def times_inverse(self, W: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        return _product(W, self.inverse)

    @property
    def offset(self) -> Float[Tensor, "dim"] | None:
        return self.mean

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "eps": _EPS}


class PerToken(Normalizer, ABC):
    """Normalizes each token by its own statistics."""

    is_folded = False

    @classmethod
    def fit(cls: type[N], sample: Float[Tensor, "n dim"]) -> N:
        dim = sample.shape[1]
        if dim < 2:
            raise DataError(
                f"Got tokens of width {dim}; {NORMALIZATIONS.name_of(cls)} needs at least 2, or nothing but a sign is left. "
                "Check the site, or choose unit_mean_square."
            )
        root_mean_square_norm(sample)
        return cls(dim)

    def apply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        token = PER_TOKEN[NORMALIZATIONS.name_of(type(self))](upcast(x))
        return (upcast(x) - token.mean) / token.scale

    def undo(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        token = PER_TOKEN[NORMALIZATIONS.name_of(type(self))](upcast(x))
        return y * token.scale + token.mean


@NORMALIZATIONS.register("layer_norm")
class LayerNorm(PerToken):
    """(x - mean of x) / (standard deviation of x + 1e-5), over the dimensions of each token, as in the code of Gao et al. 2024."""


@NORMALIZATIONS.register("constant_norm_rescale")
class ConstantNormRescale(PerToken):
    """x sqrt(dim) / |x|: every token has the norm sqrt(dim)."""


def _moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and covariance in double precision."""
    mean = sum(float64(rows).sum(0) for rows in sample.split(_CHUNK)) / len(sample)
    assert isinstance(mean, Tensor)
    covariance = mean.new_zeros(len(mean), len(mean))
    for rows in sample.split(_CHUNK):
        centered = float64(rows) - mean
        covariance.addmm_(centered.T, centered)
    return mean, covariance / len(sample)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    with no_autocast(x):
        return upcast(x) @ matrix.to(upcast(x))
