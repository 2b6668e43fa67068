"""Dictionaries built from tensors, without random weights and without unused memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries._named import autoencoder_class
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import CheckpointError, DictionaryLearningError

_ALIGNMENT = 64
"""Bytes."""


def coder(
    parts: Mapping[str, Tensor],
    nonlinearity: str = "relu",
    state: Mapping[str, Tensor] | None = None,
    *,
    centered: bool = True,
    predicts: bool = False,
    named: Callable[..., Dictionary] | None = None,
    **options: Any,
) -> Coder:
    """Returns a dictionary of one encoder and one decoder, as the class that people know it by.

    Args:
        parts: W_enc (dict_size, activation_dim), W_dec (dict_size, output_dim), b_enc, b_dec and
            W_skip (output_dim, activation_dim). Without W_enc the decoder is the encoder, without
            b_enc the nonlinearity has the biases, and b_dec is zeros by default.
        nonlinearity: a name of `NONLINEARITIES`.
        state: its tensors.
        centered: whether b_dec is subtracted before encoding.
        predicts: whether other activations are reconstructed than are read.
        named: the class, where the nonlinearity does not decide it.
        options: the nonlinearity's arguments.
    """
    dict_size, output_dim = parts["W_dec"].shape
    dim = parts["W_enc"].shape[1] if "W_enc" in parts else output_dim
    tensors = {"b_dec": parts["W_dec"].new_zeros(output_dim), **parts}
    tensors |= {f"nonlinearity.{name}": tensor for name, tensor in (state or {}).items()}
    has_skip = "W_skip" in parts
    arguments: dict[str, Any] = {"nonlinearity": {"name": nonlinearity, **options}}
    if not centered and (predicts or has_skip):
        made = built(Transcoder, tensors, dim, dict_size, **arguments, output_dim=output_dim, skip=has_skip)
    elif has_skip:
        made = built(SkipAutoencoder, tensors, dim, dict_size, **arguments)
    else:
        cls = named or autoencoder_class(NONLINEARITIES[nonlinearity])
        arguments = arguments if cls is SparseAutoencoder else options
        made = built(cls, tensors, dim, dict_size, **arguments, apply_b_dec_to_input=centered)
    assert isinstance(made, Coder)
    return made


def built(make: Callable[..., Dictionary], tensors: Mapping[str, Tensor], *sizes: Any, **options: Any) -> Dictionary:
    """Returns a dictionary with these tensors."""
    try:
        with torch.device("meta"):  # sizes of a config take no memory
            dictionary = make(*sizes, **options)
    except (DictionaryLearningError, TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint describes no dictionary that can be built: {error}") from error
    needed = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in needed.keys() | got.keys() if needed.get(name) != got.get(name))
    if wrong:
        detail = "; ".join(
            f"{name}: needed {needed.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in wrong
        )
        raise CheckpointError(
            f"The tensors do not fit the {type(dictionary).__name__} of the config. {detail}. Save the dictionary again."
        )
    dictionary.load_state_dict(_separate(tensors), assign=True)  # the tensors themselves, no copy
    return dictionary


def without_threshold() -> dict[str, Tensor]:
    """Returns the state of TopK of packages that learn no threshold."""
    return {"threshold": torch.tensor(-1.0)}


def jump_thresholds(thresholds: Tensor) -> dict[str, Tensor]:
    """Returns the state of JumpReLU."""
    # other packages rectify what exceeds the threshold, so that a negative one acts as zero
    return {"threshold": thresholds.float().clamp_min(0)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous tensors that share no memory; those that are so already are not copied."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        # matrix products round otherwise, in the last bit, where vectors are not aligned
        fits = is_whole and storage.data_ptr() not in taken and tensor.data_ptr() % _ALIGNMENT == 0
        keep = fits and not tensor.requires_grad
        found[name] = tensor if keep else tensor.detach().clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
    return found
