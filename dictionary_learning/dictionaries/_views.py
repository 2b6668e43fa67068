"""Encoder and decoder in the form of `torch.nn.Linear`: views that are read and written."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.errors import ConfigError


class LinearView:
    """The weight and the bias of an encoder or a decoder, as `torch.nn.Linear` has them.

    Nothing is copied: `view.weight.data = T`, `view.weight = T` and `view.weight.copy_(T)` write
    into the dictionary.

    Args:
        rows: The parameter, whose dim 0 is the latent axis.
        bias: The bias; None where there is none.
        transposed: Whether the weight is the transpose of the parameter, as a decoder's is.
    """

    def __init__(self, rows: Tensor, bias: Tensor | None, transposed: bool = False):
        self._rows, self._bias, self._transposed = rows, bias, transposed

    def __call__(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Returns x times the weight, plus the bias."""
        weight = self._rows.T if self._transposed else self._rows
        return nn.functional.linear(x.to(weight.dtype), weight, self._bias)

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features)."""
        return transposed(self._rows) if self._transposed else self._rows

    @weight.setter
    def weight(self, values: Tensor) -> None:
        write_(self._rows, values.T if self._transposed else values, "weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias (out_features,)."""
        return self._bias

    @bias.setter
    def bias(self, values: Tensor) -> None:
        if self._bias is None:
            raise ConfigError("This view has no bias. Write the dictionary's own parameter.")
        write_(self._bias, values, "bias")

    def assign(self, module: Any, name: str) -> None:
        """Writes weight and bias of a `torch.nn.Linear`; one without a bias has zeros.

        Raises:
            ConfigError: It is another module, has another shape, or a bias that this has not.
        """
        if not isinstance(module, (nn.Linear, LinearView)):
            raise ConfigError(
                f"{name} got a {type(module).__name__}; it is weights, and takes a torch.nn.Linear. For another "
                "function write a subclass with an `encode` or `decode` of its own."
            )
        bias = module.bias
        if self._bias is None and bias is not None and bool(bias.any()):
            raise ConfigError(f"{name} got a torch.nn.Linear with a bias, which it has not. Give one with bias=False.")
        if bias is not None and self._bias is not None and bias.shape != self._bias.shape:
            write_(self._bias, bias, f"{name}.bias")
        self.weight = module.weight
        if self._bias is not None:
            self.bias = torch.zeros_like(self._bias) if bias is None else bias

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self._rows.shape[0 if self._transposed else 1]

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self._rows.shape[1 if self._transposed else 0]

    def parameters(self) -> Iterator[Tensor]:
        """Yields the dictionary's own parameters, with the latent axis first."""
        self._rows.latents_first = True  # pyright: ignore[reportAttributeAccessIssue]  (read by `ConstrainedAdam`)
        yield self._rows
        if self._bias is not None:
            yield self._bias


class _Transposed(Tensor):
    """The transpose of a parameter, whose `data` and `grad` are the parameter's."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # results are plain tensors
    _of: Tensor

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._of.data.T

    @data.setter
    def data(self, values: Tensor) -> None:
        write_(self._of, values.T, "weight.data")

    @property
    def grad(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return None if self._of.grad is None else self._of.grad.T

    @grad.setter
    def grad(self, values: Tensor | None) -> None:
        self._of.grad = None if values is None else values.T


def write_(parameter: Tensor, values: Tensor, name: str) -> None:
    """Writes values into a parameter; raises ConfigError if they have another shape."""
    if values.shape != parameter.shape:
        raise ConfigError(f"{name} got a shape that is {tuple(values.shape)}, and the parameter's is "
                          f"{tuple(parameter.shape)} (latents first). Give values of that shape.")  # fmt: skip
    with torch.no_grad():
        parameter.copy_(values)


def transposed(rows: Tensor) -> Tensor:
    """Returns the transpose of a parameter, a view of which `data` too writes the parameter."""
    view = rows.T.as_subclass(_Transposed)
    view._of = rows
    return view
