"""Which sites a dictionary reads and writes: the wirings by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries.autoencoder import SparseAutoencoder
from dictionary_learning.dictionaries.crosscoder import Crosscoder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.dictionaries.parallel_coders import CrossLayerTranscoder, HeadAutoencoders
from dictionary_learning.dictionaries.trainable import Trainable
from dictionary_learning.dictionaries.transcoder import Transcoder


@dataclasses.dataclass(frozen=True)
class DictionaryShape:
    """What a dictionary is built for."""

    inputs: tuple[int, ...]
    """Width of each site that it reads."""
    outputs: tuple[int, ...]
    """Width of each site that it writes."""
    dict_size: int
    n_heads: int | None = None
    """Attention heads in the site, where each gets latents of its own."""


Build = Callable[..., Trainable]
"""Builds a dictionary of a wiring from its shape, nonlinearity and generator; options are what it has beyond the others."""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How a dictionary is connected."""

    build: Build
    reads_several: bool = False
    """Whether it reads several sites at once."""
    writes_others: bool = False
    """Whether what it reconstructs is not what it reads."""
    makes: type[Trainable] | None = None
    """The class of what is built, where that is more than one encoder and one decoder of one site each."""
    unit_rows: bool = True
    """Whether the decoder's rows have unit norm unless asked otherwise: where outputs have the inputs' scale."""


WIRINGS: Registry[Wiring] = Registry("wiring")


def _add(name: str, **properties: Any) -> Callable[[Build], Build]:
    def decorate(build: Build) -> Build:
        WIRINGS.register(name)(Wiring(build, **properties))
        return build

    return decorate


@_add("autoencoder")
def _autoencoder(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any, **options: Any) -> Trainable:
    return SparseAutoencoder(sum(shape.inputs), shape.dict_size, nonlinearity, generator=generator, **options)


@_add("transcoder", writes_others=True, unit_rows=False)
def _transcoder(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any, **options: Any) -> Trainable:
    outputs = sum(shape.outputs)
    return Transcoder(
        sum(shape.inputs), shape.dict_size, nonlinearity, output_dim=outputs, generator=generator, **options
    )


@_add("skip_transcoder", writes_others=True, unit_rows=False)
def _skip_transcoder(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any, **options: Any) -> Trainable:
    return _transcoder(shape, nonlinearity, generator, skip=True, **options)


@_add("crosscoder", makes=Crosscoder, reads_several=True, unit_rows=False)
def _crosscoder(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any, **options: Any) -> Trainable:
    return Crosscoder(shape.inputs, shape.dict_size, nonlinearity, generator=generator, **options)


@_add("cross_layer_transcoder", makes=CrossLayerTranscoder, reads_several=True, writes_others=True, unit_rows=False)
def _cross_layer(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any) -> Trainable:
    return CrossLayerTranscoder(
        shape.inputs, shape.dict_size, nonlinearity, output_dims=shape.outputs, generator=generator
    )


@_add("heads", makes=HeadAutoencoders)
def _heads(shape: DictionaryShape, nonlinearity: Nonlinearity, generator: Any) -> Trainable:
    n_heads = shape.n_heads or len(shape.inputs)
    return HeadAutoencoders(sum(shape.inputs), shape.dict_size, nonlinearity, n_heads=n_heads, generator=generator)


def wiring_of(dictionary: Trainable) -> str:
    """Returns the name of a dictionary's wiring."""
    if isinstance(dictionary, Transcoder):
        return "transcoder" if dictionary.W_skip is None else "skip_transcoder"
    several = (name for name, wiring in WIRINGS.items() if wiring.makes is not None)
    return next((name for name in several if isinstance(dictionary, WIRINGS[name].makes or ())), "autoencoder")


def same_parts(one: str, other: str) -> bool:
    """Returns whether dictionaries of one wiring have the parts of another's: one coder, whichever sites it reads and writes."""
    return one == other or (WIRINGS[one].makes is None and WIRINGS[other].makes is None)
