"""Options that several commands share: how data is read, and which activations are captured."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dictionary_learning.cli._arguments import CommandArguments, read_config
from dictionary_learning.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from dictionary_learning.data import Source
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
"""What the module of a layer that wirings of two sites are for is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(CommandArguments):
    """How the data is read."""

    text_column: str = "text"
    """The column or key of the text; data without it may have input_ids, tokens or messages."""
    split: str = "train"
    """The split of a data set on the hub."""
    streaming: bool = True
    """Whether a data set on the hub is read while it is downloaded."""
    data_args: tuple[str, ...] = ()
    """Further arguments of datasets.load_dataset, as name=value."""
    max_examples: int | None = None
    """The most documents to read; by default all."""
    shuffle_seed: int | None = None
    """Seed of a random order of the documents; by default their own order."""
    token_dtype: Literal["uint16", "uint32", "int32", "int64", "uint8"] = "uint16"
    """The type of the token ids in a .bin file."""
    separator_id: int | None = None
    """The token id that ends each document of a .bin or .npy file."""
    on_bad_document: Literal["error", "skip"] = "error"
    """What happens at a record without text: an error names it, or it is skipped and counted."""

    def source(self, data: str) -> "Source":
        """Returns the documents."""
        return self._limited(self._read(data))

    def divided(self, data: str, held_out_every: int) -> "tuple[Source, Source]":
        """Returns the documents to train on, and every n-th of all, which are held out."""
        rest, held = self._read(data).hold_out(held_out_every)
        return self._limited(rest), held

    def _read(self, data: str) -> "Source":
        from dictionary_learning.data import as_source

        return as_source(
            data,
            data_args=_named(self.data_args),
            dtype=self.token_dtype,
            **self.options("text_column", "split", "streaming", "separator_id", "on_bad_document"),
        )

    def _limited(self, source: "Source") -> "Source":
        if self.shuffle_seed is not None:
            source = source.shuffled(self.shuffle_seed)
        return source if self.max_examples is None else source.first(self.max_examples)


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

    def load(self, model: str) -> "TracedModel":
        """Returns the model."""
        from dictionary_learning.models import load_model

        return load_model(model, device=self.device, dtype=self.dtype, revision=self.revision)

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
        if self.sites and (self.layers or self.layer_stride != 1):
            raise ConfigError(
                "Got --sites together with --layers or --layer-stride, which name sites too. Give one of them; a "
                "pattern such as 'model.layers.[0-3].mlp' names sites in several layers."
            )
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


def data_arguments(values: Mapping[str, Any]) -> DataArguments:
    """Returns how data was read, from the settings of a run."""
    return read_config(argparse.Namespace(**values), DataArguments)


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


def _named(pairs: tuple[str, ...]) -> dict[str, Any]:
    from dictionary_learning._plain import HIDDEN

    found: dict[str, Any] = {}
    for pair in (pair for pair in pairs if not pair.endswith(HIDDEN)):  # a token of the run that was not stored
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"Got data_args={pair!r}; give name=value, as --data-args revision=main.")
        try:
            found[name] = json.loads(value)  # numbers and booleans; anything else is a string
        except json.JSONDecodeError:
            found[name] = value
    return found
