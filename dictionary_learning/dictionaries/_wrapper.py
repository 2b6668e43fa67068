"""Dictionaries around another one: what they take over from it, and the way to it."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary


class Wrapper(Dictionary):
    """A dictionary around another, with as many latents, and their directions.

    What it reads, keeps or returns is changed; weights are those inside.

    Args:
        dictionary: The dictionary inside, or its options and `"class"`, the name of its class.
    """

    def __init__(self, dictionary: Dictionary | Mapping[str, Any]):
        if isinstance(dictionary, Mapping):
            options = dict(dictionary)
            dictionary = DICTIONARIES[options.pop("class", "")](**options)
        super().__init__(dictionary.activation_dim, dictionary.dict_size, dictionary.output_dim)
        self.dictionary = dictionary

    def decode_with(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"]
    ) -> Float[Tensor, "*batch output_dim"]:
        decode: Any = self.decode  # a wrapper's takes x, too
        return decode(latents, x)

    @property
    def W_enc(self) -> Float[Tensor, "dict_size activation_dim"]:
        """Encoder rows of the dictionary inside, for what it reads."""
        return self._inside.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "dict_size output_dim"]:
        """Directions of the latents in what it returns."""
        return self._inside.W_dec

    @property
    def b_dec(self) -> Float[Tensor, "output_dim"] | None:
        """Its decoder's bias."""
        return self._inside.b_dec

    @property
    def reads_contexts(self) -> bool:
        return self.dictionary.reads_contexts

    def options(self) -> dict[str, Any]:
        return {"dictionary": {"class": DICTIONARIES.name_of(type(self.dictionary)), **self.dictionary.options()}}

    @property
    def _inside(self) -> Any:
        return self.dictionary


def innermost(dictionary: Any) -> Any:
    """Returns the dictionary that has the weights: the one inside all wrappers, or itself."""
    while isinstance(dictionary, Wrapper):
        dictionary = dictionary.dictionary
    return dictionary
