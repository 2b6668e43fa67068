"""Options that say which activations are taken: the same for every command that runs a model."""

import dataclasses
from typing import Literal

from dictionary_learning.cli.data_options import DataArguments
from dictionary_learning.errors import ConfigError
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureArguments(DataArguments):
    """Which activations are taken."""

    sites: tuple[str, ...] = ()
    """Sites or patterns, as model.layers.10:out, model.layers.[0-3].mlp, model.layers.5:heads or embedding; by default the residual
    stream after each layer."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers, from 0, in place of sites."""
    layer_stride: int = 1
    """Takes every n-th layer, in place of sites."""
    io: Literal["in", "out", "in_and_out", "heads"] = "out"
    """The side of layers, and of sites that name none; in_and_out for wirings that predict a module's output from its input, heads for
    the outputs of attention heads."""
    ctx_len: int = 128
    """Tokens in a context."""
    refresh_batch_size: int = 16
    """Contexts in a forward pass of the model."""
    remove_bos: bool = True
    """Whether BOS, separators and the first token of each context are left out."""
    seqpos_slice: tuple[int, ...] = ()
    """The positions of a context that count, as a stop, a start and a stop, or with a step; by default all."""
    max_activation_norm_multiple: float | None = 10.0
    """Leaves out tokens with a norm above this multiple of the median."""
    pack: bool = True
    """Whether documents are joined into full contexts; else each is cut and padded."""
    held_out_every: int = 20
    """Every n-th document is kept from training, and the dictionaries are evaluated on those."""
    prefetch: int | None = None
    """Forward passes made ahead in a thread; by default 1 on a GPU, else 0."""
    dtype: str | None = None
    """The model's dtype; bfloat16 where the hardware is fast at it, else float32."""
    device: str | None = None
    """Where everything runs; the accelerator if there is one."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""

    def load(self, model: str) -> TracedModel:
        """Returns the model."""
        return load_model(model, device=self.device, dtype=self.dtype, revision=self.revision)

    def sites_of(self, model: TracedModel) -> list[Site]:
        """Returns the sites that are named: by themselves, by the numbers of their layers, or all layers.

        Raises:
            ConfigError: both are given.
            SiteError: something is not in the model.
        """
        if not self.sites:
            return model.layers(self.layers, self.layer_stride, side=self.io)
        if self.layers or self.layer_stride != 1:
            raise ConfigError(
                "Got --sites together with --layers or --layer-stride, which name sites too. Give one of them; a pattern such as "
                "'model.layers.[0-3].mlp' names sites in several layers."
            )
        return model.sites(list(self.sites), self.io)

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The positions that count; None for all."""
        return self.seqpos_slice or None
