"""The arguments of one call of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning._module_io import Channels
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site


class ModelInputs(NamedTuple):
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    n_examples: int
    ctx_len: int | None = None
    """Tokens in each example; None where the model reads something else than text."""
    channels: Channels | None = None
    """Where the model's maps have their channels."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "ModelInputs":
        """Returns the arguments with each tensor changed, except those inside other arguments."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        args = tuple(changed(value) for value in self.args)
        return self._replace(args=args, kwargs={name: changed(value) for name, value in self.kwargs.items()})

    def halves(self) -> "tuple[ModelInputs, ModelInputs]":
        """Returns the arguments for the first half of the examples, and for the others."""
        n, middle = self.n_examples, self.n_examples // 2

        def part(place: slice, size: int) -> ModelInputs:
            made = self.map(lambda x: x[place] if x.ndim and x.shape[0] == n else x)
            return made._replace(n_examples=size)

        return part(slice(middle), middle), part(slice(middle, n), n - middle)

    def check(self, site: Site, x: Tensor) -> None:
        """Checks that activations (batch, positions, dim) belong to these examples and tokens.

        Raises:
            SiteError: they have another batch size or context length.
        """
        if x.shape[0] != self.n_examples or (self.ctx_len or x.shape[1]) != x.shape[1]:
            raise SiteError(
                f"Site '{site}' gave {tuple(x.shape)}; ({self.n_examples}, {self.ctx_len or 'positions'}, dim) is "
                "needed, as for the first example. Choose a module with activations for each token of each example."
            )


def is_ids(tensor: Tensor) -> bool:
    """Returns whether a tensor may be token ids (batch, ctx)."""
    return (
        tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    )
