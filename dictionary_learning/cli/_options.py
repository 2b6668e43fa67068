"""Options that several commands share: how data is read, and which activations are captured."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dictionary_learning._text_reading import ContextReading, TextReading
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
"""What the module of a layer that wirings of two sites are for is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(TextReading, CommandArguments):
    """How the data is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextArguments(ContextReading, DataArguments):
    """How the data is read, and how contexts are made of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureArguments(ModelArguments, ContextArguments):
    """Which activations are captured."""

    sites: tuple[str, ...] = ()
    """Sites or patterns, as model.layers.10:out, model.layers.[0-3].mlp, model.layers.5:heads or
    embedding; by default the residual stream after each layer, or the MLPs for a wiring that
    predicts a module's output from its input."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, from 0, or from -1 backwards, instead of sites."""
    layer_stride: int = 1
    """Every n-th layer, instead of sites."""
    io: Literal["in", "out", "in_and_out", "heads"] | None = None
    """The side of layers, and of sites that name none: by default out, or in_and_out for a wiring
    that predicts a module's output from its input; heads are the outputs of attention heads."""
    ctx_len: int = 128
    """Tokens in a context."""
    refresh_batch_size: int = 16
    """Contexts in a forward pass of the model."""
    remove_bos: bool = True
    """Whether BOS, separators and the first token of each context are excluded."""
    exclude_tokens: tuple[int | str, ...] = ()
    """Further tokens to exclude: ids, eos, bos, or tokens as the vocabulary writes them."""
    seqpos_slice: tuple[int | None, ...] = ()
    """The positions that count, as a stop, a start and a stop, or with a step; by default all."""
    max_activation_norm_multiple: float | None = 10.0
    """Excludes tokens with a norm above this multiple of the median."""
    held_out_every: int = 20
    """Every n-th document is held out of training; the dictionaries are evaluated on those."""
    prefetch: int | None = None
    """Forward passes computed ahead in a thread; by default 1 on a GPU, else 0."""

    def check_sites(self) -> None:
        """Checks that sites are named in one way.

        Raises:
            ConfigError: They are named in two ways.
        """
        if self.sites and (self.layers or self.layer_stride != 1):
            raise ConfigError(
                "Got --sites together with --layers or --layer-stride, which name sites too. Give one of them; a "
                "pattern such as 'model.layers.[0-3].mlp' names sites in several layers."
            )

    def sites_of(self, model: "TracedModel", predicts: bool = False) -> "list[Site]":
        """Returns the sites that are named: as such, by the numbers of layers, or all layers.

        Args:
            model: the model.
            predicts: whether the dictionaries predict a module's output from its input, which
                decides the default.

        Raises:
            ConfigError: sites and layers are both given.
            SiteError: something is not in the model.
        """
        self.check_sites()
        if self.sites:
            # who names a side means that side
            both_sides = predicts and not any(":" in site for site in self.sites)
            return model.sites(list(self.sites), self.io or ("in_and_out" if both_sides else "out"))
        if self.io is None and predicts:
            return _mlps(model, model.layers(self.layers, self.layer_stride))
        return model.layers(self.layers, self.layer_stride, side=self.io or "out")

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments that a shuffle buffer and the writer of a cache have in common."""
        names = ("refresh_batch_size", "remove_bos", "max_activation_norm_multiple", "prefetch", "exclude_tokens")
        return {**self.options(*names), "ctx_len": self.ctx_len, "seqpos_slice": self.seqpos_slice or None}


def _mlps(model: "TracedModel", layers: "list[Site]") -> "list[Site]":
    for name in _MLP_NAMES:
        try:
            return model.sites([f"{layer.path}.{name}" for layer in layers], "in_and_out")
        except SiteError:
            continue
    raise SiteError(
        f"The wiring predicts a module's output from its input, and the layers of {model.name} have no module called "
        f"{' or '.join(_MLP_NAMES)}. Name the modules by --sites, as 'model.layers.[0-9].mlp'."
    )
