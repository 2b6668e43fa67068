"""Named unions of public signatures."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from torch import Tensor

    from dictionary_learning.data.document import Document
    from dictionary_learning.data.streams import ContextSource


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
