"""Options that several commands share: how data is read, and which activations are captured."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from dictionary_learning._trained_on import TextReading
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.errors import ConfigError, MissingDependencyError, SiteError

if TYPE_CHECKING:
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
"""What the module of a layer that wirings of two sites are for is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(TextReading, CommandArguments):
    """How the data is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureArguments(DataArguments):
    """Which activations are captured."""

    sites: tuple[str, ...] = ()
    """Sites or patterns, as model.layers.10:out, model.layers.[0-3].mlp, model.layers.5:heads or
    embedding; by default the residual stream after each layer, or the MLPs for a wiring that
    predicts a module's output from its input."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, from 0, instead of sites."""
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
    seqpos_slice: tuple[int, ...] = ()
    """The positions that count, as a stop, a start and a stop, or with a step; by default all."""
    max_activation_norm_multiple: float | None = 10.0
    """Excludes tokens with a norm above this multiple of the median."""
    pack: bool = True
    """Whether documents are packed into full contexts; otherwise each is cut and padded."""
    held_out_every: int = 20
    """Every n-th document is held out of training; the dictionaries are evaluated on those."""
    prefetch: int | None = None
    """Forward passes computed ahead in a thread; by default 1 on a GPU, else 0."""
    dtype: str | None = None
    """The model's dtype; bfloat16 where the hardware is fast at it, else float32."""
    device: str | None = None
    """The device; the accelerator if there is one."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
    load_in_8bit: bool = False
    """Whether the model's weights are held in 8 bits, by bitsandbytes."""
    device_map: str | None = None
    """Spreads a model over several devices, as transformers does: auto, balanced or sequential."""
    trust_remote_code: bool = False
    """Whether code that comes with the model is run."""

    def load(self, model: str) -> "TracedModel":
        """Returns the model.

        Raises:
            MissingDependencyError: 8 bits need bitsandbytes, which is not installed.
            ConfigError: it is put on one device, and spread over several.
        """
        from dictionary_learning.models import load_model

        if self.device_map is not None and self.device is not None:
            raise ConfigError(f"Got --device {self.device} with --device-map {self.device_map}. Give one of them.")
        options: dict[str, Any] = {"trust_remote_code": True} if self.trust_remote_code else {}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.load_in_8bit:
            options |= _in_8_bits(self.device, self.device_map)
        return load_model(model, device=self.device, dtype=self.dtype, revision=self.revision, **options)

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
        names = ("ctx_len", "refresh_batch_size", "remove_bos", "max_activation_norm_multiple", "pack", "prefetch")
        return {**self.options(*names), "seqpos_slice": self.seqpos_slice or None}


def _in_8_bits(device: str | None, device_map: str | None) -> dict[str, Any]:
    """Returns the arguments by which transformers holds weights in 8 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("bitsandbytes", "--load-in-8bit", "adam8bit")
    from transformers import BitsAndBytesConfig

    from dictionary_learning._hardware import as_device

    # such weights cannot be moved afterwards
    place = {} if device_map else {"device_map": {"": str(as_device(device))}}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), **place}


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
