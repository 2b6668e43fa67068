"""Dictionaries built from tensors, without random weights and without unused memory."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries._named import autoencoder_class
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop._tensors import separate


def built(make: Callable[..., Dictionary], tensors: Mapping[str, Tensor], *sizes: Any, **options: Any) -> Dictionary:
    """Returns a dictionary with these tensors."""
    try:
        with torch.device("meta"):  # sizes of a config take no memory
            dictionary = make(*sizes, **options)
    except (DictionaryLearningError, TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint describes no dictionary that can be built: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != got:
        names = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        detail = "; ".join(
            f"{name}: needed {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in names
        )
        raise CheckpointError(
            f"The tensors do not fit the {type(dictionary).__name__} of the config. {detail}. Save the dictionary again."
        )
    dictionary.load_state_dict(separate(tensors), assign=True)  # the tensors themselves, no copy
    return dictionary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """One encoder and one decoder in the terms of this package. Dim 0 is the latent axis."""

    W_enc: Tensor | None
    """(dict_size, activation_dim); None where the decoder is the encoder."""
    W_dec: Tensor
    """(dict_size, output_dim)"""
    b_enc: Tensor | None = None
    """(dict_size,); None where the nonlinearity has the biases."""
    b_dec: Tensor | None = None
    """(output_dim,); None for zeros."""
    W_skip: Tensor | None = None
    """(output_dim, activation_dim)"""
    nonlinearity: str = "relu"
    """A name of `NONLINEARITIES`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Its arguments."""
    state: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Its tensors."""
    centered: bool = True
    """Whether b_dec is subtracted before encoding."""
    predicts: bool = False
    """Whether the dictionary reconstructs other activations than it reads."""

    def dictionary(self, named: Callable[..., SparseAutoencoder] | None = None) -> Coder:
        """Returns the dictionary, as the class that people know it by."""
        dict_size, output_dim = self.W_dec.shape
        dim = output_dim if self.W_enc is None else self.W_enc.shape[1]
        b_dec = self.W_dec.new_zeros(output_dim) if self.b_dec is None else self.b_dec
        tensors = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": b_dec, "W_skip": self.W_skip}
        state = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        state |= {f"nonlinearity.{name}": tensor for name, tensor in self.state.items()}
        make, options = self._class(named, output_dim)
        made = built(make, state, dim, dict_size, **options)
        assert isinstance(made, Coder)
        return made

    def _class(self, named: Callable[..., SparseAutoencoder] | None, output_dim: int) -> tuple[Any, dict[str, Any]]:
        own = {"name": self.nonlinearity, **self.options}
        if not self.centered and (self.predicts or self.W_skip is not None):
            return Transcoder, {"nonlinearity": own, "output_dim": output_dim, "skip": self.W_skip is not None}
        if self.W_skip is not None:
            return SkipAutoencoder, {"nonlinearity": own}
        centering = {"apply_b_dec_to_input": self.centered}
        named = named or autoencoder_class(NONLINEARITIES[self.nonlinearity])
        if named is SparseAutoencoder:
            return SparseAutoencoder, {"nonlinearity": own, **centering}
        return named, {**self.options, **centering}


def without_threshold() -> dict[str, Tensor]:
    """Returns the state of TopK of packages that learn no threshold."""
    return {"threshold": torch.tensor(-1.0)}


def jump_thresholds(thresholds: Tensor) -> dict[str, Tensor]:
    """Returns the state of JumpReLU."""
    # other packages rectify what exceeds the threshold, so that a negative one acts as zero
    return {"threshold": thresholds.float().clamp_min(0)}
