"""What trainers are fed with."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.sites import Site

ActivationBatch = Mapping[Site, Float[Tensor, "batch dim"]]
"""Activations by site; row i is the same token at every site."""


@runtime_checkable
class ActivationSource(Protocol):
    """Activations, a batch after another. Any iterable of tensors or of `ActivationBatch` will do as well."""

    widths: Mapping[Site, int]

    def __iter__(self) -> Iterator[Tensor | ActivationBatch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
