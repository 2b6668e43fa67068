"""What the arguments of public functions accept, as named unions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union, runtime_checkable

if TYPE_CHECKING:  # for annotations: nothing here imports at run time
    import os

    from torch import nn

    from dictionary_learning.model_set import ModelSet
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site


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
