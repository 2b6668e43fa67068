"""The base of every dictionary."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning._border import short
from dictionary_learning._brief import brief
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries._info import DictionaryInfo
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.latents import Latents

D = TypeVar("D", bound="Dictionary")


class Default:
    """An attribute that is computed until one of the same name is set."""

    def __init__(self, rule: Callable[[Any], Any]):
        self.rule = rule

    def __get__(self, owner: Any, cls: Any) -> Any:
        return self if owner is None else self.rule(owner)


class Reconstruction(NamedTuple):
    """The output of a dictionary for a batch."""

    outputs: Float[Tensor, "batch output_dim"]
    latents: Latents
    """Sparse where the nonlinearity keeps a set number of latents, else dense."""
    pre_activations: Latents | None = None
    """Dense or sparse as the latents are; None where only the kept latents were computed."""

    __repr__ = brief


class Dictionary(nn.Module, ABC):
    """Encodes activations into latents, and decodes latents into activations.

    Dim 0 of every per-latent tensor is the latent axis: W_enc is (dict_size, activation_dim), W_dec
    is (dict_size, output_dim), and row i of W_dec is the direction of latent i. Activations of
    several sites are concatenated in the last dimension. `output_dim` is `activation_dim` by
    default.

    Raises:
        ConfigError: A size is not a positive whole number.
    """

    info: DictionaryInfo = DictionaryInfo()
    """What is known about it: sites, model, the config it was saved with. No part of its state."""
    output_dim: int = Default(lambda dictionary: dictionary.activation_dim)  # pyright: ignore[reportAssignmentType]
    """Width of the outputs."""
    device: torch.device = Default(lambda d: next(d.parameters()).device)  # pyright: ignore[reportAssignmentType]
    """Device of the parameters."""
    dtype: torch.dtype = Default(lambda d: next(d.parameters()).dtype)  # pyright: ignore[reportAssignmentType]
    """Dtype of the parameters."""

    def __init__(self, activation_dim: int | None = None, dict_size: int | None = None, output_dim: int | None = None):
        super().__init__()
        if activation_dim is None and dict_size is None:
            return  # a class written for dictionary-learning 0.1, which sets both itself
        self.activation_dim: int = activation_dim  # pyright: ignore[reportAttributeAccessIssue]  (checked below)
        self.dict_size: int = dict_size  # pyright: ignore[reportAttributeAccessIssue]
        self.output_dim: int = activation_dim if output_dim is None else output_dim  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("activation_dim", "dict_size", "output_dim"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{type(self).__name__} got {name}={size!r}; it must be a positive whole number.")

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents, dense."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction from dense latents."""

    def decode_with(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"]
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction from dense latents of x, also where `decode` needs x too."""
        return self.decode(latents)

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        """Returns outputs and latents of a batch. Latents are sparse where few are kept."""
        latents = self.encode(x)
        return Reconstruction(self.decode_with(latents, x), latents)

    def reconstruct_contexts(
        self, x: Float[Tensor, "n activation_dim"], lengths: Int[Tensor, "contexts"]
    ) -> Reconstruction:
        """Returns outputs and latents of the tokens of several contexts, one after another.

        `lengths` has the number of tokens of each; it may be 0.
        """
        return self.reconstruct(x)

    def decode_change(
        self, latents: Int[Tensor, "m"], change: Float[Tensor, "n m"], x: Float[Tensor, "n activation_dim"]
    ) -> Float[Tensor, "n output_dim"]:
        """Returns what a change of some latents of x adds to its reconstruction."""
        nothing = change.new_zeros(len(change), self.dict_size)
        return self.decode(nothing.index_copy(1, latents, change)) - self.decode(nothing)

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        """Returns x_hat, or (x_hat, latents) with `output_features`."""
        self.check_width(x)
        if output_features:
            latents = self.encode(x)
            return self.decode_with(latents, x), latents
        flat, lead = pack([x], "* dim")
        (x_hat,) = unpack(self.reconstruct(flat).outputs, lead, "* dim")
        return x_hat

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        """Converts a dictionary from x / inputs to y / outputs into one from x to y, in place.

        `inputs` and `outputs` (by default the same) divided inputs and targets in training.

        Raises:
            ConfigError: This class does not say how it is scaled.
        """
        if inputs == 1 and outputs in (None, 1):
            return  # nothing to do, which any class can
        scale_biases = getattr(self, "scale_biases", None)
        if (outputs is not None and outputs != inputs) or scale_biases is None:
            raise ConfigError(
                f"A {type(self).__name__} cannot be scaled by {inputs}: it has no `scale_`. Write it, or train on "
                "activations as they are (normalize='none')."
            )
        scale_biases(inputs)

    def options(self) -> dict[str, Any]:
        """Returns the arguments of a dictionary of the same class and shape, as plain data."""
        return {"activation_dim": self.activation_dim, "dict_size": self.dict_size}

    def expanded(self, dict_size: int, nonlinearity: Any, generator: torch.Generator | None) -> "Dictionary":
        """Returns a trainable copy with more latents or another nonlinearity (`expand_or_convert`).

        Raises:
            ConfigError: This kind of dictionary cannot be trained further.
        """
        raise ConfigError(
            f"A {type(self).__name__} cannot be trained further. If it normalizes tokens, give the dictionary inside "
            "(its attribute `dictionary`)."
        )

    def check_sites(self, widths: Sequence[int], output_widths: Sequence[int]) -> None:
        """Checks that the dictionary fits the sites that it reads and writes.

        Raises:
            ConfigError: The widths differ.
        """
        for what, mine, theirs in zip(("reads", "writes"), self.site_widths, (widths, output_widths), strict=True):
            # activations of several sites may also come concatenated, as one site
            if min(len(mine), len(theirs)) == 1:
                mine, theirs = [sum(mine)], [sum(theirs)]
            if list(mine) != list(theirs):
                own, other = (", ".join(map(str, widths)) for widths in (mine, theirs))
                raise ConfigError(
                    f"The {type(self).__name__} {what} activations of width {own}; the site has width {other}. "
                    "Give the model and the site that it was trained on."
                )

    @property
    def site_widths(self) -> tuple[Sequence[int], Sequence[int]]:
        """Widths of the sites that are read, and of those that are written."""
        return (self.activation_dim,), (self.output_dim,)

    @property
    def reads_contexts(self) -> bool:
        """Whether latents depend on the tokens before: rows must be in order then."""
        return False

    def check_width(self, x: Any, width: int | None = None, what: str = "activations") -> None:
        """Checks the width of the inputs, or of latents.

        Raises:
            ConfigError: They have another width, or are no dense tensor.
        """
        width = self.activation_dim if width is None else width
        if not isinstance(x, Tensor) or x.layout is not torch.strided or not x.ndim or x.is_complex():
            raise ConfigError(f"Got {short(x)} as {what}; give a dense tensor (..., {width}) of real numbers.")
        if x.shape[-1] != width:
            raise ConfigError(
                f"Got {what} of width {x.shape[-1]}; this dictionary takes width {width}. "
                "Check that they come from the site that it was trained on."
            )

    @classmethod
    def from_pretrained(
        cls: type[D],
        path: "str | os.PathLike[str]",
        device: Any = None,
        *older: Any,
        **options: Any,
    ) -> D:
        """Loads a dictionary of this class from files of any format (see `load_dictionary`).

        The order (path, k, device) or (path, dtype, device) of dictionary-learning 0.1 works too.

        Raises:
            CheckpointError: There is no dictionary, or one of another class.
            ConfigError: There are more arguments by position.
        """
        if not older and isinstance(device, (int, torch.dtype)):  # (path, k)
            older = (None,)
        if older:
            first = device
            name = "dtype" if isinstance(first, torch.dtype) else "k"
            if len(older) > 1 or not (first is None or isinstance(first, (int, torch.dtype))):
                raise ConfigError(f"Got {(first, *older)} after the path; name the arguments: device=..., dtype=...")
            device, options = next(iter(older)), {**({} if first is None else {name: first}), **options}
        from dictionary_learning.dictionaries._serialization import load_dictionary

        # where files fit several classes, the class that was called decides
        place: Any = device
        dictionary = load_dictionary(path, place, expected_class=cls.__name__, **options)
        if not isinstance(dictionary, cls):
            raise CheckpointError(
                f"'{path}' holds a {type(dictionary).__name__}, not a {cls.__name__}. "
                f"Use {type(dictionary).__name__}.from_pretrained, or load_dictionary, which loads any class."
            )
        return dictionary


DICTIONARIES: Registry[type[Dictionary]] = Registry("dictionary class")
