"""Dictionaries made of tensors: no weight is drawn at random, and no memory taken that the tensors do not fill."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries.named import autoencoder_class
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop.tensors import separate


def built(make: Callable[..., Dictionary], tensors: Mapping[str, Tensor], *sizes: Any, **options: Any) -> Dictionary:
    """Returns a dictionary with these tensors.

    Args:
        make: its class.
        tensors: the tensors, by the names of its state.
        sizes: arguments of the class.
        options: further arguments.

    Raises:
        CheckpointError: the arguments cannot be used, or the tensors are not those of the class, or not finite.
    """
    try:
        with torch.device("meta"):
            dictionary = make(*sizes, **options)
    except (DictionaryLearningError, TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint describes no dictionary that can be built: {error}") from error
    check_tensors(dictionary, tensors)
    dictionary.load_state_dict(separate(tensors), assign=True)
    return dictionary


def check_tensors(dictionary: Dictionary, tensors: Mapping[str, Tensor]) -> None:
    """Checks that tensors are those of the dictionary's state, and finite.

    Raises:
        CheckpointError: they are not.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        detail = "; ".join(
            f"{name}: needed {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in wrong
        )
        raise CheckpointError(
            f"The tensors do not fit the {type(dictionary).__name__} of the config. {detail}. Save the dictionary again."
        )
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"The checkpoint holds values that are not finite in {', '.join(bad)}; the run that wrote it had diverged."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A dictionary of one encoder and one decoder, in the terms that all formats share. Dim 0 is the latent axis."""

    W_enc: Tensor | None
    """(dict_size, activation_dim); None where the decoder is the encoder."""
    W_dec: Tensor
    """(dict_size, output_dim)"""
    b_enc: Tensor | None = None
    """None where the nonlinearity has the biases."""
    b_dec: Tensor | None = None
    """None for zeros."""
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
    """Whether what it writes is not what it reads."""

    def dictionary(self, named: Callable[..., SparseAutoencoder] | None = None) -> Coder:
        """Returns the dictionary, as the class that it is known by.

        Args:
            named: an autoencoder's class, where it is not that of the nonlinearity.

        Raises:
            CheckpointError: the parts do not fit each other.
        """
        n, output_dim = self.W_dec.shape
        dim = output_dim if self.W_enc is None else self.W_enc.shape[1]
        b_dec = self.W_dec.new_zeros(output_dim) if self.b_dec is None else self.b_dec
        tensors = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": b_dec, "W_skip": self.W_skip}
        state = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        state |= {f"nonlinearity.{name}": tensor for name, tensor in self.state.items()}
        make, options = self._wiring(named, output_dim)
        made = built(make, state, dim, n, **options)
        assert isinstance(made, Coder)
        return made

    def _wiring(self, named: Callable[..., SparseAutoencoder] | None, output_dim: int) -> tuple[Any, dict[str, Any]]:
        own = {"name": self.nonlinearity, **self.options}
        if not self.centered and (self.predicts or self.W_skip is not None):
            options = {"nonlinearity": own, "output_dim": output_dim, "skip": self.W_skip is not None}
            return Transcoder, options
        if self.W_skip is not None:
            return SkipAutoencoder, {"nonlinearity": own}
        centering = {"apply_b_dec_to_input": self.centered}
        named = named or autoencoder_class(NONLINEARITIES[self.nonlinearity])
        if named is SparseAutoencoder:
            return SparseAutoencoder, {"nonlinearity": own, **centering}
        return named, {**self.options, **centering}


def jump_thresholds(thresholds: Tensor) -> dict[str, Tensor]:
    """Returns the state of JumpReLU with the thresholds of others, which rectify what passes: negative ones are zero."""
    return {"threshold": thresholds.float().clamp_min(0)}
