"""What the arguments of public functions accept, as named unions."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union, runtime_checkable

if TYPE_CHECKING:  # for annotations: nothing of the package is imported at run time
    import datasets  # pyright: ignore[reportMissingTypeStubs]
    import numpy as np
    from torch import Tensor, nn

    from dictionary_learning._model_set import ModelSet
    from dictionary_learning.data._document import Document
    from dictionary_learning.data._streams import ContextSource
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site
    from dictionary_learning.trainers import OptimizationConfig


class SeriesLike(Protocol):
    """A column of strings or token ids, as a pandas or polars Series, or a DataFrame."""

    def to_numpy(self) -> "np.ndarray":
        """Returns the values as an array."""
        ...


TextLike: TypeAlias = Union[
    str,
    "os.PathLike[str]",
    Iterable[str],
    "Iterable[Sequence[int] | Tensor | np.ndarray]",
    Iterable[Sequence[Mapping[str, Any]]],
    "Iterable[Document]",
    "Tensor",
    "np.ndarray",
    SeriesLike,
    "datasets.Dataset",
    "datasets.IterableDataset",
    "datasets.DatasetDict",
    "ContextSource",
]
"""Text, conversations or token ids, as `as_source` accepts them, or a stream of contexts."""


@runtime_checkable
class Envoy(Protocol):
    """nnsight's handle of a module, or of a whole model."""

    @property
    def path(self) -> str:
        """The module's path, below the name of the root."""
        ...


SitesLike: TypeAlias = Union[str, "Site", Sequence["str | Site"]]
"""A site, a pattern of sites, or several of them."""
SubmodulesLike: TypeAlias = Union[SitesLike, "nn.Module", Envoy, Sequence["str | Site | nn.Module | Envoy"]]
"""Sites, or the modules of a model themselves."""
ModelLike: TypeAlias = Union[str, "os.PathLike[str]", "nn.Module", Envoy, "TracedModel", "ModelSet"]
"""A model by name, a model object, or one that `load_model` returned."""
ConfigLike: TypeAlias = Union["OptimizationConfig", Mapping[str, Any]]
"""A typed config, or a dictionary with the key "trainer"."""
