"""Autoencoders that add a direction for each latent: what can be taken out of activations."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._candidates import PlacedCandidate


def check_decoder(one: PlacedCandidate) -> None:
    """Raises ConfigError unless a dictionary adds a direction for each latent to what it reads."""
    coder = one.dictionary
    if one.reads != one.writes or not isinstance(coder, Coder) or coder.W_skip is not None or coder.reads_contexts:
        raise ConfigError(
            f"'{one.name}' is a {type(coder).__name__}; this measure needs an autoencoder with one direction "
            "for each latent, at the site that it reads. Leave it out."
        )


def directions_of(dictionary: Dictionary) -> Float[Tensor, "dict_size dim"]:
    """Returns what one unit of each latent adds, in float32 on the CPU."""
    assert isinstance(dictionary, Coder)  # as `check_decoder` found
    return dictionary.W_dec.detach().float().cpu()
